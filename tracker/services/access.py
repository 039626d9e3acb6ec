"""Who may append to what, asked in one statement: each sender asks each few seconds, and a thousand of them at once.

The run's JSON (config, summary), its writers' writer.json and the ORM's own work would cost more than taking a batch does.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracker.domain.errors import RunDeleted, WriterUnknown
from tracker.domain.lifecycle import RunState
from tracker.models import Project, Run, Token, User, Writer
from tracker.services import writers
from tracker.store import rows

_RUN = "r.id, r.project_id, r.state, r.stop_requested_at IS NOT NULL, r.deleted_at IS NOT NULL"
_WRITER = f"SELECT {_RUN}, w.attempt_id FROM tracker_writer w JOIN tracker_run r ON r.id = w.run_id WHERE w.id = %s"  # noqa: S608


@dataclass(slots=True)
class Access:
    """``run`` and ``writer`` hold their ids and the run's state alone; what stores documents reads the rows anew."""

    run: Run
    writer: Writer
    is_stop_asked: bool

    @property
    def stops(self) -> bool:
        """As ``writers.stops``."""
        return self.is_stop_asked and not RunState(self.run.state).is_terminal


def to_append(writer_id: str, user: User, token: Token | None) -> Access:
    """The right to append to this writer. Raises WriterUnknown, RunDeleted, Forbidden."""
    with rows.cursor() as cursor:
        cursor.execute(_WRITER, [writer_id])
        found = cursor.fetchone()
    if found is None:
        raise WriterUnknown
    run_id, project_id, state, is_stop_asked, is_deleted, attempt_id = found
    run = Run(id=run_id, project=Project(id=project_id), state=state)
    writers.require_write(user=user, token=token, run=run, otherwise=WriterUnknown)
    if is_deleted:
        raise RunDeleted
    return Access(run, Writer(id=writer_id, run=run, attempt_id=attempt_id), bool(is_stop_asked))
