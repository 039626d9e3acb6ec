from django.urls import include, path

urlpatterns = [
    path("api/v1/", include("tracker.api.urls")),
    path("", include("tracker.web.urls")),
]
