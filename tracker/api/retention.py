"""Rules of retention, and what they would do now (docs/export.md)."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.views import View
from tracker.domain import retention as words
from tracker.domain.errors import Forbidden, Invalid
from tracker.models.project import Role
from tracker.services import freeing, projects, retention, runs


class RuleShape(serializers.Serializer):
    id = serializers.IntegerField(read_only=True)
    action = serializers.ChoiceField(choices=words.ACTIONS)
    after_days = serializers.IntegerField(help_text="Since the run's end.")
    keys = serializers.ListField(child=serializers.CharField(), required=False, help_text="Names or globs, for the action points.")
    filter = serializers.CharField(required=False, allow_blank=True, help_text="Which runs, in the filter language.")
    archived = serializers.BooleanField(required=False, allow_null=True)
    sentence = serializers.CharField(read_only=True, help_text="The rule in words.")


class RulesShape(serializers.Serializer):
    rules = RuleShape(many=True)
    inherited = serializers.BooleanField(read_only=True, help_text="True: the instance's, since the project has none of its own.")


class OutcomeShape(serializers.Serializer):
    rule = RuleShape()
    runs = serializers.IntegerField()
    points = serializers.IntegerField()
    bytes = serializers.IntegerField()
    freed_at = serializers.DateTimeField(allow_null=True)
    failed = serializers.IntegerField(help_text="Runs that could not be looked at; the server's log says why.")
    complete = serializers.BooleanField(help_text="False: there are more runs than could be looked at in 20 seconds.")


class PreviewShape(serializers.Serializer):
    results = OutcomeShape(many=True)


class SizeShape(serializers.Serializer):
    points = serializers.IntegerField()
    bytes = serializers.IntegerField(help_text="All that deleting the run frees.")
    block_bytes = serializers.IntegerField()
    hot_bytes = serializers.IntegerField()
    log_bytes = serializers.IntegerField()


def _shown(rules: list[words.Rule], inherited: bool) -> dict:
    return {"rules": [{**rule.told(), "sentence": rule.sentence()} for rule in rules], "inherited": inherited}


def _told(request) -> list:
    if not isinstance(request.data, dict) or set(request.data) - {"inherited"} != {"rules"}:
        raise Invalid('The body is {"rules": […]}; an empty list takes all away.', rules="malformed")
    return request.data["rules"]


class OfProject(View):
    @extend_schema(operation_id="retention", responses=RulesShape)
    def get(self, request, slug):
        return Response(_shown(*retention.in_force(projects.get(user=request.user, slug=slug))))

    @extend_schema(operation_id="set_retention", request=RulesShape, responses=RulesShape)
    def put(self, request, slug):
        project = projects.get(user=request.user, slug=slug)
        retention.replace(user=request.user, project=project, told=_told(request))
        return Response(_shown(*retention.in_force(project)))


class Preview(View):
    @extend_schema(operation_id="retention_preview", responses=PreviewShape)
    def get(self, request, slug):
        project = projects.get(user=request.user, slug=slug)
        projects.require_role(user=request.user, project=project, role=Role.OWNER)
        found = retention.apply(project=project, dry_run=True, seconds=20)
        return Response({"results": [{k: v for k, v in each.told().items() if k != "project"} for each in found]})


class OfInstance(View):
    @extend_schema(operation_id="instance_retention", responses=RulesShape)
    def get(self, request):
        if not request.user.is_superuser:
            raise Forbidden("The instance's rules are a superuser's.")
        return Response(_shown(retention.rules(None), False))

    @extend_schema(operation_id="set_instance_retention", request=RulesShape, responses=RulesShape)
    def put(self, request):
        return Response(_shown(retention.replace(user=request.user, project=None, told=_told(request)), False))


class Size(View):
    @extend_schema(operation_id="run_size", responses=SizeShape)
    def get(self, request, id):
        size = freeing.size_of(runs.get(user=request.user, run_id=id).id)
        return Response({**vars(size), "bytes": size.bytes})
