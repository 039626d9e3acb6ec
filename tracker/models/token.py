"""Bearer tokens (hashed at rest) and one-time login links."""

from __future__ import annotations

import hashlib
import secrets

from django.db import models

from tracker.domain.ids import new_id
from tracker.models.user import User


def digest(secret: str) -> str:
    # The secret has 256 random bits, so a plain hash cannot be reversed by guessing; no slow hash is needed on every request.
    return hashlib.sha256(secret.encode()).hexdigest()


class Token(models.Model):
    """``scopes``: ``api`` (all that its user may do), ``worker`` (claim and heartbeat only), ``job`` (one job's run and blobs)."""

    PREFIX = "enc_"

    id = models.CharField(primary_key=True, max_length=26, default=new_id, editable=False)
    user = models.ForeignKey(User, models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    scopes = models.JSONField(default=list)
    job = models.ForeignKey("tracker.Job", models.CASCADE, null=True, related_name="keys")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)

    @classmethod
    def new_secret(cls) -> str:
        return cls.PREFIX + secrets.token_urlsafe(32)


class LoginLink(models.Model):
    """Logs a browser in once, within minutes; ``encore up`` prints one."""

    digest = models.CharField(max_length=64, unique=True)
    user = models.ForeignKey(User, models.CASCADE)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
