"""Machines that offer to do jobs."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from tracker.domain import ids, storable
from tracker.domain.errors import Forbidden, Invalid, NotFound
from tracker.models import Token, Worker

HERE_FOR = timedelta(seconds=30)
"""A worker says hello each ten seconds; after three missed ones it counts as gone."""


def hello(*, token: Token | None, name: str, queues: list[str], info: dict) -> Worker:
    """A worker's sign of life, by its name. A worker started anew under the same name and account is the same worker."""
    if not name.strip():
        raise Invalid("A worker has a name.", name="empty")
    name = storable.text(name.strip(), 200)
    known = Worker.objects.select_related("token").filter(name=name).first()
    if known and known.token and token and known.token.user_id != token.user_id:
        raise Forbidden(f"The name {name} belongs to another account's worker: choose another.", code="worker_name_taken")
    clean = [storable.text(queue, 100) for queue in queues if queue][:100]
    defaults = {"token": token, "queues": clean, "info": storable.value(info), "last_seen_at": timezone.now()}
    return Worker.objects.update_or_create(name=name, defaults=defaults)[0]


def of_token(*, token: Token | None, worker_id: object) -> Worker:
    """The worker that ``token``'s account has registered. Raises Invalid, NotFound."""
    if not isinstance(worker_id, str) or not ids.is_id(worker_id):
        raise Invalid("worker is the id that workers/hello answered.", worker="malformed")
    worker = Worker.objects.select_related("token").filter(id=worker_id).first()
    if worker is None or token is None or worker.token is None or worker.token.user_id != token.user_id:
        raise NotFound("There is no such worker: post workers/hello first.")
    return worker


def is_here(worker: Worker) -> bool:
    return worker.last_seen_at > timezone.now() - HERE_FOR
