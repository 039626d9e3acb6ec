"""A person or a service account."""

from django.contrib.auth.models import AbstractUser


class User(AbstractUser):
    """Django's user; a model of our own so that it can grow without a swap later."""
