"""The states of runs and jobs, and which may follow which."""

from enum import Enum


class RunState(str, Enum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CRASHED = "crashed"
    KILLED = "killed"
    PREEMPTED = "preempted"

    @property
    def is_terminal(self) -> bool:
        return self not in (RunState.QUEUED, RunState.RUNNING)


class JobState(str, Enum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


STEPS = ("checkout", "environment", "data", "execute", "evidence")
"""The named steps of a reproduction, in order."""


def outcome(ends: list[str]) -> RunState:
    """The state of a run whose trainers ended so: the worst of them, and crashed for a word nobody knows."""
    worst_first = (RunState.FAILED, RunState.KILLED, RunState.CRASHED, RunState.PREEMPTED, RunState.FINISHED)
    known = {state.value for state in worst_first}
    said = {end if end in known else RunState.CRASHED.value for end in ends}
    return next(state for state in worst_first if state.value in said)
