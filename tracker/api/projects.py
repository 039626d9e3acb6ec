from __future__ import annotations

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.views import View, listed, page_of
from tracker.models.project import Role
from tracker.services import projects


class MemberShape(serializers.Serializer):
    user = serializers.CharField(source="user.username")
    role = serializers.ChoiceField(choices=Role.choices)


MEMBERS = page_of(MemberShape, "MemberPage")


class NewMemberShape(serializers.Serializer):
    user = serializers.CharField()
    role = serializers.ChoiceField(choices=Role.choices)


class MembersShape(serializers.Serializer):
    members = NewMemberShape(many=True)


class ProjectShape(serializers.Serializer):
    slug = serializers.CharField(max_length=100)
    name = serializers.CharField(max_length=200, required=False, allow_blank=True)
    description = serializers.CharField(required=False, allow_blank=True)
    role = serializers.CharField(read_only=True)
    created_at = serializers.DateTimeField(read_only=True)


class ProjectChange(serializers.Serializer):
    name = serializers.CharField(max_length=200, required=False)
    description = serializers.CharField(required=False, allow_blank=True)


def shown(project, role: str) -> dict:
    project.role = role
    return ProjectShape(project).data


class Projects(View):
    @extend_schema(operation_id="projects", responses=page_of(ProjectShape, "ProjectPage"))
    def get(self, request):
        return listed([shown(project, role) for project, role in projects.roles(user=request.user)])

    @extend_schema(operation_id="create_project", request=ProjectShape, responses={201: ProjectShape})
    def post(self, request):
        project = projects.create(user=request.user, **self.asked(ProjectShape))
        return Response(shown(project, Role.OWNER.value), status=201)


class Project(View):
    @extend_schema(operation_id="project", responses=ProjectShape)
    def get(self, request, slug):
        project = projects.get(user=request.user, slug=slug)
        return Response(shown(project, projects.role_of(user=request.user, project=project)))

    @extend_schema(operation_id="change_project", request=ProjectChange, responses=ProjectShape)
    def patch(self, request, slug):
        project = projects.get(user=request.user, slug=slug)
        project = projects.update(user=request.user, project=project, **self.asked(ProjectChange))
        return Response(shown(project, projects.role_of(user=request.user, project=project)))


class Members(View):
    @extend_schema(operation_id="members", responses=MEMBERS)
    def get(self, request, slug):
        project = projects.get(user=request.user, slug=slug)
        return listed(MemberShape(project.memberships.select_related("user").order_by("user__username"), many=True).data)

    @extend_schema(operation_id="set_members", request=MembersShape, responses=MEMBERS)
    def put(self, request, slug):
        project = projects.get(user=request.user, slug=slug)
        members = projects.set_members(user=request.user, project=project, members=self.asked(MembersShape)["members"])
        return listed(MemberShape(members, many=True).data)
