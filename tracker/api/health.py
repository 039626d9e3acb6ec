"""Is this process alive and does it reach its database?"""

from importlib.metadata import PackageNotFoundError, version

from django.db import connection
from django.http import JsonResponse
from django.views.decorators.http import require_safe

from tracker.api.errors import answering

try:
    _VERSION = version("encore-tracker")
except PackageNotFoundError:  # run from a checkout that was not installed
    _VERSION = None


@require_safe
@answering
def healthz(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return JsonResponse({"status": "ok", "version": _VERSION}, headers={"Cache-Control": "no-store"})
