import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tracker.settings")
application = get_wsgi_application()

from tracker.api.ingest_batches import fast_lane  # noqa: E402 - Django is set up only now

application = fast_lane(application)
