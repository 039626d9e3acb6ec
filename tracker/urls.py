from django.urls import include, path

from tracker.api.health import healthz

urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("api/v1/", include("tracker.api.urls")),
    path("", include("tracker.web.urls")),
]
