"""Values that are more than numbers: `sdk.log({"samples": sdk.Image(x)}, step=3)`. Loaded when the first of them is used.

Making one takes a private copy of what was given (a memory copy, or a clone on the device) and nothing else; encoding and writing
happen in a thread of their own (`_desk.py`). What cannot be taken never raises where it is made: it is dropped, counted and said at log.
"""

from __future__ import annotations

from ._base import Media
from ._figure import Plotly
from ._histogram import Histogram
from ._image import Image
from ._sound import Audio
from ._table import Table
from ._video import Video
from ._words import Html, Text

KINDS = ("Audio", "Histogram", "Html", "Image", "Plotly", "Table", "Text", "Video")

__all__ = ["KINDS", "Audio", "Histogram", "Html", "Image", "Media", "Plotly", "Table", "Text", "Video"]
