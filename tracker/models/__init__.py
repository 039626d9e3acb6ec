"""Rows. One noun a file: the QuerySet above, the model below it."""

from tracker.models.attempt import Attempt
from tracker.models.blob import Blob
from tracker.models.event import Event
from tracker.models.job import Job, JobLog, JobStep
from tracker.models.key import KeyDefinition, RunValue, SearchedKey, WideKeys
from tracker.models.log import LogChunk
from tracker.models.media import Media
from tracker.models.metric import MetricBlock, MetricKeyset, MetricSegment, MetricSummary, MetricTrash, StaleSummary
from tracker.models.project import Membership, Project
from tracker.models.reproduction import Reproduction
from tracker.models.retention import RetentionDone, RetentionRule
from tracker.models.run import Run
from tracker.models.token import LoginLink, Token
from tracker.models.user import User
from tracker.models.worker import Worker
from tracker.models.writer import Writer

__all__ = [
    "Attempt", "Blob", "Event", "Job", "JobLog", "JobStep", "KeyDefinition", "LogChunk", "LoginLink", "Media", "Membership",
    "MetricBlock", "MetricKeyset", "MetricSegment", "MetricSummary", "MetricTrash", "Project", "Reproduction", "RetentionDone",
    "RetentionRule", "Run", "RunValue", "SearchedKey", "StaleSummary", "Token", "User", "WideKeys", "Worker", "Writer",
]  # fmt: skip
