"""People, their tokens and their one-time links."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from tracker.domain.errors import Conflict, Invalid, LeaseLost, NotFound, Unauthenticated
from tracker.domain.lifecycle import JobState
from tracker.models import LoginLink, Token, User
from tracker.models.token import digest

SCOPES = ("api", "worker")
"""Scopes a person can ask for; ``job`` keys are made by a claim alone."""
LOGIN_MINUTES = 15
INVITATION_DAYS = 7
_USED_EVERY = timedelta(minutes=5)


def create_user(*, username: str, password: str | None = None, email: str = "", superuser: bool = False) -> User:
    """Without a password the person can log in by link only. Raises Conflict (``user_exists``), Invalid."""
    user = User(username=username, email=email, is_superuser=superuser, is_staff=superuser)
    try:
        if password is not None:
            validate_password(password, user)
        user.set_password(password)
        user.full_clean(exclude=["password"], validate_unique=False)
    except ValidationError as error:
        raise Invalid(" ".join(error.messages)) from None
    try:
        with transaction.atomic():
            user.save()
    except IntegrityError:
        raise Conflict(f"There is already a user {username}.", code="user_exists") from None
    return user


def invite(*, username: str, email: str = "") -> tuple[User, str]:
    """A user without a password, and the secret of a link that logs them in once within a week."""
    user = User.objects.filter(username=username).first() or create_user(username=username, email=email)
    return user, login_link(user, valid=timedelta(days=INVITATION_DAYS))


def set_password(*, user: User, password: str) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise Invalid(" ".join(error.messages), password=" ".join(error.messages)) from None
    user.set_password(password)
    user.save(update_fields=["password"])


def ensure_owner(name: str) -> User:
    """The embedded default's owner: a superuser called like the operating system's user."""
    user = User.objects.filter(username=name).first()
    if user is None:
        return create_user(username=name, superuser=True)
    if not user.is_superuser:
        user.is_superuser = user.is_staff = True
        user.save(update_fields=["is_superuser", "is_staff"])
    return user


def ensure_worker_token() -> tuple[Token, str]:
    """A fresh ``worker`` token of the service account ``worker``; the tokens of earlier starts are revoked."""
    user = User.objects.filter(username="worker").first() or create_user(username="worker")
    user.tokens.filter(name="embedded worker", revoked_at=None).update(revoked_at=timezone.now())
    return create_token(user=user, name="embedded worker", scopes=["worker"])


def create_token(*, user: User, name: str, scopes, expires_at: datetime | None = None) -> tuple[Token, str]:
    """A personal or service token and its secret, which is shown now and never again."""
    scopes = sorted(set(scopes))
    if not scopes or not set(scopes) <= set(SCOPES):
        raise Invalid(f"Scopes are some of: {', '.join(SCOPES)}.", scopes="unknown scope")
    return _new_token(user=user, name=name, scopes=scopes, expires_at=expires_at)


def create_job_key(*, job, user: User) -> str:
    """The key of one claim; those of earlier claims stop working at once."""
    revoke_job_keys(job)
    return _new_token(user=user, name=f"job {job.id} #{job.fence}", scopes=["job"], expires_at=None, job=job)[1]


def revoke_job_keys(job) -> None:
    Token.objects.filter(job_id=job.id, revoked_at=None).update(revoked_at=timezone.now())


def _new_token(*, user, name, scopes, expires_at, job=None) -> tuple[Token, str]:
    secret = Token.new_secret()
    token = Token.objects.create(user=user, name=name[:100], digest=digest(secret), scopes=scopes, expires_at=expires_at, job=job)
    return token, secret


def revoke_token(*, user: User, token_id: str) -> None:
    """Idempotent; somebody else's token looks unknown."""
    if not Token.objects.filter(id=token_id, user=user, job=None).exists():
        raise NotFound
    Token.objects.filter(id=token_id, revoked_at=None).update(revoked_at=timezone.now())


def authenticate_token(secret: str) -> tuple[User, Token]:
    """Raises Unauthenticated; LeaseLost for a job's key whose lease is gone."""
    token = Token.objects.select_related("user", "job").filter(digest=digest(secret)).first()
    now = timezone.now()
    if token is None or not token.user.is_active:
        raise Unauthenticated("This token is not known here. Make one with 'encore token create' or on your tokens page.")
    if token.job_id is not None:
        job = token.job
        if token.revoked_at or job.state != JobState.RUNNING.value or job.lease_until is None or job.lease_until <= now:
            raise LeaseLost
    if token.revoked_at:
        raise Unauthenticated("This token was revoked. Make a new one with 'encore token create'.")
    if token.expires_at and token.expires_at <= now:
        raise Unauthenticated(f"This token expired at {token.expires_at.isoformat()}. Make a new one with 'encore token create'.")
    if token.last_used_at is None or now - token.last_used_at > _USED_EVERY:
        Token.objects.filter(id=token.id).update(last_used_at=now)
    return token.user, token


def login_link(user: User, *, valid: timedelta = timedelta(minutes=LOGIN_MINUTES)) -> str:
    """The secret of a link that logs ``user``'s browser in once (the page is ``/login/<secret>``)."""
    secret = secrets.token_urlsafe(32)
    LoginLink.objects.create(user=user, digest=digest(secret), expires_at=timezone.now() + valid)
    return secret


def use_login_link(secret: str) -> User | None:
    """The link's user, once; None when it is unknown, used or too old. The conditional update is what makes it once."""
    now = timezone.now()
    used = LoginLink.objects.filter(digest=digest(secret), used_at=None, expires_at__gt=now).update(used_at=now)
    if not used:
        return None
    user = LoginLink.objects.select_related("user").get(digest=digest(secret)).user
    return user if user.is_active else None


def forget_old_links() -> int:
    return LoginLink.objects.filter(Q(expires_at__lt=timezone.now() - timedelta(days=1))).delete()[0]
