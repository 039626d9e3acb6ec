"""Who I am, and my tokens."""

from __future__ import annotations

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.auth import API, JOB, WORKER
from tracker.api.views import View, listed, page_of
from tracker.domain.errors import Invalid
from tracker.services import accounts, projects


class RoleShape(serializers.Serializer):
    slug = serializers.CharField()
    role = serializers.CharField()


class MeShape(serializers.Serializer):
    user = serializers.CharField()
    scopes = serializers.ListField(child=serializers.CharField())
    projects = RoleShape(many=True)


class TokenShape(serializers.Serializer):
    id = serializers.CharField(read_only=True)
    name = serializers.CharField(max_length=100)
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=accounts.SCOPES), default=["api"])
    expires_at = serializers.DateTimeField(allow_null=True, default=None)
    created_at = serializers.DateTimeField(read_only=True)
    revoked_at = serializers.DateTimeField(read_only=True, allow_null=True)
    last_used_at = serializers.DateTimeField(read_only=True, allow_null=True)


class NewTokenShape(TokenShape):
    secret = serializers.CharField(read_only=True, help_text="Shown now and never again.")


class Me(View):
    scopes = frozenset({API, WORKER, JOB})

    @extend_schema(operation_id="me", responses=MeShape)
    def get(self, request):
        scopes = request.auth.scopes if request.auth else ["api"]
        mine = projects.roles(user=request.user) if "api" in scopes else []
        found = [{"slug": project.slug, "role": role} for project, role in mine]
        return Response({"user": request.user.username, "scopes": scopes, "projects": found})


class Tokens(View):
    @extend_schema(operation_id="tokens", responses=page_of(TokenShape, "TokenPage"))
    def get(self, request):
        mine = request.user.tokens.filter(job=None).order_by("-created_at", "id")[:500]
        return listed(TokenShape(mine, many=True).data)

    @extend_schema(operation_id="create_token", request=TokenShape, responses={201: NewTokenShape})
    def post(self, request):
        asked = self.asked(TokenShape)
        if asked["expires_at"] and asked["expires_at"] <= timezone.now():
            raise Invalid("expires_at lies in the past.", expires_at="past")
        token, secret = accounts.create_token(user=request.user, **asked)
        token.secret = secret
        return Response(NewTokenShape(token).data, status=201)


class Token(View):
    @extend_schema(operation_id="revoke_token", responses={204: None})
    def delete(self, request, id):
        accounts.revoke_token(user=request.user, token_id=id)
        return Response(status=204)
