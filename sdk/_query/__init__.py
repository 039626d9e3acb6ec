"""Reading from Python what the tracker has: ``sdk.Api()``.

    api = sdk.Api()                                  # the server of ENCORE_URL, or the one this machine is logged in to
    for run in api.runs(project="gpt", filter="config.lr > 1e-4 AND state = finished"):
        print(run.name, run.summary.get("val/loss"), run.history("train/loss", form="pandas"))
    api.runs(project="gpt").pandas()                 # one row a run
    api.history("val/loss", project="gpt").pandas()  # all points of all its runs

Answers are streamed: thousands of runs are one request. Errors are those of ``sdk.errors``.
"""

import time  # for tests that wind the clock

from .api import Api
from .found import Ambiguous, NotFound
from .numbers import number
from .reproductions import Reproduction
from .runs import Run, Runs
from .series import Histories, Series

__all__ = ["Ambiguous", "Api", "Histories", "NotFound", "Reproduction", "Run", "Runs", "Series", "number", "time"]
