"""Projects and who may do what in them."""

from __future__ import annotations

import re

from django.db import IntegrityError, transaction

from tracker.domain import storable
from tracker.domain.errors import Conflict, Forbidden, Invalid, NotFound, ProjectTaken
from tracker.models import Membership, Project, User
from tracker.models.project import Role

SLUG = re.compile(r"[A-Za-z0-9_-]{1,100}")


def slug_of(name: str) -> str:
    """The slug a project called ``name`` gets: what cannot stand in an address becomes a dash. Raises Invalid if nothing is left."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:100]
    if not slug:
        raise Invalid("A project's name needs at least one letter or digit.", project="empty")
    return slug


def create(*, user: User, slug: str, name: str = "", description: str = "") -> Project:
    """A project with ``user`` as its owner. Raises Invalid, Conflict (``project_taken``, also when it is hidden from ``user``)."""
    if not SLUG.fullmatch(slug):
        raise Invalid("A project's slug has 1 to 100 letters, digits, '-' and '_'.", slug="malformed")
    name = storable.text(name or slug, 200)
    try:
        with transaction.atomic():
            project = Project.objects.create(slug=slug, name=name, description=storable.text(description))
            Membership.objects.create(project=project, user=user, role=Role.OWNER)
    except IntegrityError:
        raise Conflict(f"There is already a project {slug}: choose another slug.", code="project_taken") from None
    return project


def get(*, user: User, slug: str) -> Project:
    project = Project.objects.visible_to(user).filter(slug=slug).first()
    if project is None:
        raise NotFound(f"There is no project {slug}, or you may not see it.")
    return project


def for_writing(*, user: User, name: str) -> Project:
    """The project a first write names, made if it is not there yet. Raises ProjectTaken, Invalid."""
    slug = slug_of(name)
    project = Project.objects.filter(slug=slug).first()
    if project is None:
        try:
            return create(user=user, slug=slug, name=name)
        except Conflict:  # another rank was faster
            project = Project.objects.get(slug=slug)
    if role_of(user=user, project=project) not in (Role.EDITOR, Role.OWNER):
        raise ProjectTaken
    return project


def role_of(*, user: User, project: Project) -> str | None:
    """``viewer``, ``editor``, ``owner`` or None; a superuser owns everything."""
    if not user.is_authenticated:
        return None
    if user.is_superuser:
        return Role.OWNER.value
    membership = Membership.objects.filter(project=project, user=user).first()
    return membership.role if membership else None


def require_role(*, user: User, project: Project, role: str) -> None:
    """Raises NotFound to those who may not see the project, Forbidden to those whose role is too small."""
    order = [None, Role.VIEWER.value, Role.EDITOR.value, Role.OWNER.value]
    have = role_of(user=user, project=project)
    if have is None:
        raise NotFound
    if order.index(have) < order.index(role):
        raise Forbidden(f"This needs the {role}'s role in project {project.slug}; you are {have}.")


def roles(*, user: User) -> list[tuple[Project, str]]:
    """Every project ``user`` sees, with the role in it."""
    if user.is_superuser:
        return [(project, Role.OWNER.value) for project in Project.objects.all()]
    found = Membership.objects.filter(user=user).select_related("project").order_by("project__slug")
    return [(membership.project, membership.role) for membership in found]


def update(*, user: User, project: Project, name: str | None = None, description: str | None = None) -> Project:
    require_role(user=user, project=project, role=Role.OWNER)
    if name is not None:
        project.name = storable.text(name, 200) or project.slug
    if description is not None:
        project.description = storable.text(description)
    project.save(update_fields=["name", "description"])
    return project


def set_members(*, user: User, project: Project, members: list[dict]) -> list[Membership]:
    """Replace the list of members by ``[{"user": name, "role": role}]``. Somebody must stay its owner."""
    require_role(user=user, project=project, role=Role.OWNER)
    wanted: dict[str, str] = {}
    for member in members:
        if member["role"] not in Role.values:
            raise Invalid(f"Roles are {', '.join(Role.values)}.", role=str(member["role"]))
        wanted[member["user"]] = member["role"]
    users = {found.username: found for found in User.objects.filter(username__in=wanted)}
    if unknown := sorted(set(wanted) - set(users)):
        raise Invalid(f"There is no user {', '.join(unknown)}: invite them with 'encore user invite'.", unknown=unknown)
    if Role.OWNER.value not in wanted.values():
        raise Invalid("A project needs at least one owner.", members="no owner")
    with transaction.atomic():
        project.memberships.exclude(user__in=users.values()).delete()
        for name, role in wanted.items():
            Membership.objects.update_or_create(project=project, user=users[name], defaults={"role": role})
    return list(project.memberships.select_related("user").order_by("user__username"))
