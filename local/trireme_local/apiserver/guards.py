"""Writes that authorization of the verb alone does not settle: privilege escalation, and a node's own objects."""

from __future__ import annotations

from . import errors, nodes
from .auth import User
from .errors import quote
from .rbac import GROUP, MASTERS, Attributes, Authorizer
from .resource import Resource
from .store import Obj

_ROLES = ("roles", "clusterroles")
_BINDINGS = ("rolebindings", "clusterrolebindings")


def _rule_text(rule: Obj) -> str:
    names = (
        ("APIGroups", "apiGroups"),
        ("Resources", "resources"),
        ("ResourceNames", "resourceNames"),
        ("NonResourceURLs", "nonResourceURLs"),
        ("Verbs", "verbs"),
    )
    return "{" + ", ".join(f"{title}:{quote(rule[key])}" for title, key in names if rule.get(key)) + "}"


class Guard:
    """Checks a write by a user; raises ApiError 403."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def check(self, user: User, resource: Resource, new: Obj, old: Obj | None, subresource: str) -> None:
        """Refuse a create (old is None) or update that the user may not make."""
        if MASTERS in user.groups:
            return
        if old is None and not subresource:
            self._create(user, resource, new)
        if not resource.group:
            verb = "create" if old is None else "update"
            nodes.restrict(user, resource.plural, subresource, verb, old or new)
        if resource.group == GROUP and resource.plural in _ROLES:
            self._role(user, resource, new)
        elif resource.group == GROUP and resource.plural in _BINDINGS:
            self._binding(user, resource, new)

    def _create(self, user: User, resource: Resource, new: Obj) -> None:
        """An apply or a PUT that creates needs the verb create too, on its name."""
        namespace, name = new["metadata"].get("namespace", ""), new["metadata"].get("name", "")
        wanted = Attributes(user, "create", resource.group, resource.version, resource.plural, "", namespace, name)
        posted = Attributes(user, "create", resource.group, resource.version, resource.plural, "", namespace, "")
        if self._authorizer.allowed(wanted) or self._authorizer.allowed(posted):
            return
        where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        why = f'User "{user.name}" cannot create resource "{resource.plural}" in API group "{resource.group}" {where}'
        raise errors.forbidden(resource.group, resource.plural, name, why)

    def _holds(self, user: User, verb: str, plural: str, namespace: str, name: str) -> bool:
        return self._authorizer.allowed(Attributes(user, verb, GROUP, "v1", plural, "", namespace, name))

    def _role(self, user: User, resource: Resource, role: Obj) -> None:
        meta = role["metadata"]
        if self._holds(user, "escalate", resource.plural, meta.get("namespace", ""), meta["name"]):
            return
        rules = list(role.get("rules") or ())
        if role.get("aggregationRule"):
            # It may come to grant anything.
            rules.append({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]})
        self._refuse_uncovered(user, resource, meta, rules)

    def _binding(self, user: User, resource: Resource, binding: Obj) -> None:
        meta, reference = binding["metadata"], binding["roleRef"]
        namespace = meta.get("namespace", "")
        plural = "clusterroles" if reference["kind"] == "ClusterRole" else "roles"
        if self._holds(user, "bind", plural, namespace, reference["name"]):
            return
        self._refuse_uncovered(user, resource, meta, self._authorizer.role_rules(reference, namespace))

    def _refuse_uncovered(self, user: User, resource: Resource, meta: Obj, rules: list[Obj]) -> None:
        missing = self._authorizer.uncovered(user, meta.get("namespace", ""), rules)
        if missing:
            listed = "\n".join(_rule_text(rule) for rule in missing)
            who = f"user {quote(user.name)} (groups={quote(list(user.groups))})"
            why = f"{who} is attempting to grant RBAC permissions not currently held:\n{listed}"
            raise errors.forbidden(resource.group, resource.plural, meta["name"], why)
