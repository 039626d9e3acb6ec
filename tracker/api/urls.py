from django.urls import re_path

from tracker.api import errors

urlpatterns = [
    re_path(r"", errors.not_found),
]
