"""Addresses of pages. A name before its first dash is the noun that the rail marks."""

from django.urls import path

from tracker.web import code, compare, home, login, logs, media, reproductions, run, runs, settings, workers

urlpatterns = [
    path("", home.projects, name="home"),
    path("jump", home.jump, name="jump"),
    path("login", login.password, name="login"),
    path("login/link/<str:secret>", login.link, name="login-link"),
    path("login/<str:secret>", login.link),
    path("logout", login.leave, name="logout"),
    path("projects/<slug:slug>", runs.project, name="project"),
    path("runs", runs.all_runs, name="runs"),
    path("runs/bulk", runs.bulk, name="runs-bulk"),
    path("runs/<str:run_id>", run.overview, name="run-overview"),
    path("runs/<str:run_id>/head", run.header, name="run-head"),
    path("runs/<str:run_id>/charts", run.charts, name="run-charts"),
    path("runs/<str:run_id>/system", run.system, name="run-system"),
    path("runs/<str:run_id>/logs", logs.logs, name="run-logs"),
    path("runs/<str:run_id>/logs/lines", logs.lines, name="run-lines"),
    path("runs/<str:run_id>/media", media.media, name="run-media"),
    path("runs/<str:run_id>/media/<int:number>/figure", media.figure, name="run-figure"),
    path("runs/<str:run_id>/code", code.code, name="run-code"),
    path("runs/<str:run_id>/code/raw", code.raw, name="run-raw"),
    path("runs/<str:run_id>/environment", code.environment, name="run-environment"),
    path("runs/<str:run_id>/reproductions", reproductions.of_run, name="run-reproductions"),
    path("runs/<str:run_id>/reproduce", reproductions.dialog, name="run-reproduce"),
    path("runs/<str:run_id>/edit", run.edit, name="run-edit"),
    path("runs/<str:run_id>/stop", run.stop, name="run-stop"),
    path("runs/<str:run_id>/delete", run.delete, name="run-delete"),
    path("compare", compare.compare, name="compare"),
    path("reproductions", reproductions.listing, name="reproductions"),
    path("reproductions/<str:reproduction_id>", reproductions.detail, name="reproduction"),
    path("reproductions/<str:reproduction_id>/lines", reproductions.lines, name="reproduction-lines"),
    path("reproductions/<str:reproduction_id>/cancel", reproductions.cancel, name="reproduction-cancel"),
    path("workers", workers.workers, name="workers"),
    path("settings", settings.settings, name="settings"),
    path("settings/tokens", settings.create_token, name="settings-tokens"),
    path("settings/tokens/<str:token_id>/revoke", settings.revoke_token, name="settings-revoke"),
    path("settings/password", settings.password, name="settings-password"),
    path("settings/members/<slug:slug>", settings.members, name="settings-members"),
]
