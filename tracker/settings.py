"""Django settings. Everything an operator chooses comes from the environment (docs/operations.md); the rest is fixed here."""

import json
import os
import secrets
from pathlib import Path

import dj_database_url

from tracker.sqlite import use_fixed_sqlite

BASE_DIR = Path(__file__).resolve().parent.parent
_in_wheel = Path(__file__).resolve().parent / "_pages"
PAGES_DIR = _in_wheel if _in_wheel.is_dir() else BASE_DIR
"""Where templates/ and static/ lie: beside the packages in a checkout, inside this one in an installed wheel."""
ENCORE_HOME = Path(os.environ.get("ENCORE_HOME") or Path.home() / ".encore").expanduser()
ENCORE_HOME.mkdir(mode=0o700, parents=True, exist_ok=True)


def _secret_key() -> str:
    """From the environment, else made once and kept in ENCORE_HOME: no key is ever shipped."""
    if key := os.environ.get("ENCORE_SECRET_KEY"):
        return key
    path = ENCORE_HOME / "secret-key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(key := secrets.token_urlsafe(50))
    return key


SECRET_KEY = _secret_key()
DEBUG = False


def _url() -> str:
    """Where people reach this instance: as told, else where ``encore up`` on this folder last listened."""
    if told := os.environ.get("ENCORE_URL"):
        return told.rstrip("/")
    try:
        return str(json.loads((ENCORE_HOME / "credentials.json").read_text())["url"]).rstrip("/")
    except (OSError, ValueError, KeyError, TypeError):
        return "http://127.0.0.1:8265"


ENCORE_URL = _url()
ALLOWED_HOSTS = os.environ.get("ENCORE_ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]").split(",")
CSRF_TRUSTED_ORIGINS = [ENCORE_URL]
ROOT_URLCONF = "tracker.urls"
WSGI_APPLICATION = "tracker.wsgi.application"
AUTH_USER_MODEL = "tracker.User"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
LOGIN_URL = "/login"
LOGIN_REDIRECT_URL = "/"

INSTALLED_APPS = [
    "tracker",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "django_htmx",
    "axes",
    "csp",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "axes.middleware.AxesMiddleware",
]
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [PAGES_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "tracker.web.context.shell",
            ],
        },
    }
]

if os.environ.get("DATABASE_URL"):
    DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"], conn_max_age=600, conn_health_checks=True)}
else:
    use_fixed_sqlite()
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ENCORE_HOME / "encore.sqlite3",
            "CONN_MAX_AGE": None,
            "TEST": {"NAME": ENCORE_HOME / "test.sqlite3"},  # a file as in service: threads cannot share an in-memory one
            "OPTIONS": {
                # IMMEDIATE: a transaction that will write takes its lock at once, so two of them wait instead of one failing.
                "transaction_mode": "IMMEDIATE",
                "timeout": 60,
                # FULL: an acknowledged batch survives power loss. mmap_size is never set: it can corrupt on some kernels.
                # The cache is each thread's own, and the server has 32.
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-16384; PRAGMA foreign_keys=ON;",
            },
        }
    }

STATIC_URL = "/static/"
STATIC_ROOT = ENCORE_HOME / "static"
STATICFILES_DIRS = [PAGES_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

# Strict: no inline script, no eval, nothing from elsewhere.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:", "blob:"],
        "connect-src": ["'self'"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_NAME = "encore_session"
CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = ENCORE_URL.startswith("https://")
SESSION_ENGINE = "django.contrib.sessions.backends.db"
AXES_FAILURE_LIMIT = 10
AXES_VERBOSE = False
AXES_COOLOFF_TIME = 0.25
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["tracker.api.auth.BearerAuthentication", "tracker.api.auth.PageSession"],
    "DEFAULT_PERMISSION_CLASSES": ["tracker.api.auth.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "tracker.api.errors.handle",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Encore",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "tracker.api.schema.complete"],
    "ENUM_ADD_EXPLICIT_BLANK_NULL_CHOICE": False,
}

DATA_UPLOAD_MAX_MEMORY_SIZE = 64 * 2**20

CELERY_BROKER_URL = os.environ.get("ENCORE_BROKER_URL", "")
ENCORE_STORE = ENCORE_HOME / "store"
ENCORE_S3 = {
    "endpoint": os.environ.get("ENCORE_S3_ENDPOINT", ""),
    "bucket": os.environ.get("ENCORE_S3_BUCKET", ""),
    "access_key": os.environ.get("ENCORE_S3_ACCESS_KEY", ""),
    "secret_key": os.environ.get("ENCORE_S3_SECRET_KEY", ""),
    "region": os.environ.get("ENCORE_S3_REGION", "us-east-1"),
    "prefix": os.environ.get("ENCORE_S3_PREFIX", ""),
}
ENCORE_COLD = {
    "store": os.environ.get("ENCORE_COLD_STORE", ""),
    "bucket": os.environ.get("ENCORE_COLD_S3_BUCKET", ""),
    "class": os.environ.get("ENCORE_COLD_S3_CLASS", ""),
}
ENCORE_TRASH_DAYS = 7
ENCORE_CACHE_MB = int(os.environ.get("ENCORE_CACHE_MB", "384"))  # of each process: what it keeps decoded of the metric store
ENCORE_SILENT_SECONDS = int(os.environ.get("ENCORE_SILENT_SECONDS", "60"))
"""A run whose sender said nothing for so long is crashed."""

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": os.environ.get("ENCORE_LOG_LEVEL", "INFO")},
}
