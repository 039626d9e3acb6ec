"""One machine's Celery worker."""

from django.db import models

from tracker.domain.ids import new_id
from tracker.models.token import Token


class Worker(models.Model):
    id = models.CharField(primary_key=True, max_length=26, default=new_id, editable=False)
    name = models.CharField(max_length=200, unique=True)
    token = models.ForeignKey(Token, models.SET_NULL, null=True)
    queues = models.JSONField(default=list)
    info = models.JSONField(default=dict, help_text="Host, versions, GPUs, slots, disk: as the worker says.")
    first_seen_at = models.DateTimeField(auto_now_add=True)
    last_seen_at = models.DateTimeField()
