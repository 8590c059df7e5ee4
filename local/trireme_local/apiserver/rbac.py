"""Authorization: RBAC from the stored roles and bindings, and what a node may do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from . import nodes
from .auth import User
from .selectors import selector_matches
from .store import Obj, Store

GROUP = "rbac.authorization.k8s.io"
MASTERS = "system:masters"


@dataclass(frozen=True)
class Attributes:
    """What a request wants to do."""

    user: User
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""  # of a non-resource request

    @property
    def combined(self) -> str:
        """`resource/subresource`, or `resource`."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


def rule_allows(rule: Obj, wanted: Attributes) -> bool:
    """Whether one PolicyRule covers a request."""
    verbs = rule.get("verbs") or ()
    if "*" not in verbs and wanted.verb not in verbs:
        return False
    if wanted.path:
        return any(
            url == "*" or url == wanted.path or (url.endswith("*") and wanted.path.startswith(url[:-1]))
            for url in rule.get("nonResourceURLs") or ()
        )
    groups, resources = rule.get("apiGroups") or (), rule.get("resources") or ()
    if "*" not in groups and wanted.group not in groups:
        return False
    any_resource = f"*/{wanted.subresource}" if wanted.subresource else "*"
    if not {"*", wanted.combined, any_resource} & set(resources):
        return False
    names = rule.get("resourceNames") or ()
    return not names or wanted.name in names


def _binds(subject: Obj, user: User, namespace: str) -> bool:
    kind, name = subject.get("kind"), subject.get("name", "")
    if kind == "User":
        return bool(name == user.name)
    if kind == "Group":
        return name in user.groups
    where = subject.get("namespace") or namespace
    return bool(user.name == f"system:serviceaccount:{where}:{name}")


def _subject_text(subject: Obj, namespace: str) -> str:
    if subject["kind"] == "ServiceAccount":
        where = subject.get("namespace") or namespace
        return f'ServiceAccount "{subject["name"]}/{where}"'
    return f'{subject["kind"]} "{subject["name"]}"'


class Authorizer:
    """Allows or denies requests."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def allowed(self, wanted: Attributes) -> bool:
        """Whether the user may do this."""
        return self.reason(wanted) is not None

    def reason(self, wanted: Attributes) -> str | None:
        """Why the user may do this; None when it is denied."""
        if MASTERS in wanted.user.groups:
            return ""
        if nodes.allowed(self._store, wanted.user, wanted):
            return ""
        for rule, text in self.rules(wanted.user, wanted.namespace):
            if rule_allows(rule, wanted):
                return f"RBAC: allowed by {text}"
        return None

    def rules(self, user: User, namespace: str) -> Iterator[tuple[Obj, str]]:
        """The rules that apply to a user in a namespace ("" for the cluster), each with its origin."""
        for entry in self._store.list(f"{GROUP}/clusterrolebindings"):
            yield from self._bound(entry.obj, user, "", "ClusterRoleBinding")
        if namespace:
            for entry in self._store.list(f"{GROUP}/rolebindings", namespace):
                yield from self._bound(entry.obj, user, namespace, "RoleBinding")

    def _bound(self, binding: Obj, user: User, namespace: str, kind: str) -> Iterator[tuple[Obj, str]]:
        subject = next((item for item in binding.get("subjects") or () if _binds(item, user, namespace)), None)
        if subject is None:
            return
        reference = binding["roleRef"]
        where = f"{binding['metadata']['name']}/{namespace}" if namespace else binding["metadata"]["name"]
        text = f'{kind} "{where}" of {reference["kind"]} "{reference["name"]}" to {_subject_text(subject, namespace)}'
        for rule in self.role_rules(reference, namespace):
            yield rule, text

    def role_rules(self, reference: Obj, namespace: str) -> list[Obj]:
        """The rules of a role that a binding names; none when the role is missing."""
        cluster = reference.get("kind") == "ClusterRole"
        plural = "clusterroles" if cluster else "roles"
        entry = self._store.get(f"{GROUP}/{plural}", "" if cluster else namespace, reference.get("name", ""))
        return list(entry.obj.get("rules") or ()) if entry else []

    def rules_status(self, user: User, namespace: str) -> Obj:
        """The status of a SelfSubjectRulesReview."""
        resource_rules: list[Obj] = []
        other_rules: list[Obj] = []
        if MASTERS in user.groups:
            resource_rules.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
            other_rules.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
        for rule, _ in self.rules(user, namespace):
            (other_rules if rule.get("nonResourceURLs") else resource_rules).append(rule)
        return {"resourceRules": resource_rules, "nonResourceRules": other_rules, "incomplete": False}

    def uncovered(self, user: User, namespace: str, rules: list[Obj]) -> list[Obj]:
        """Rules that grant what the user does not have, and so may not give to others."""
        held = [rule for rule, _ in self.rules(user, namespace)]
        return [
            rule
            for rule in rules
            if any(not any(rule_allows(mine, one) for mine in held) for one in _requests_of(rule, user))
        ]


def _requests_of(rule: Obj, user: User) -> Iterator[Attributes]:
    """The single requests that a rule stands for; a wildcard is only covered by a wildcard."""
    for verb in rule.get("verbs") or ():
        for path in rule.get("nonResourceURLs") or ():
            yield Attributes(user, verb, path=path)
        for group in rule.get("apiGroups") or ():
            for plural in rule.get("resources") or ():
                resource, _, subresource = plural.partition("/")
                one = Attributes(user, verb, group, resource=resource, subresource=subresource)
                for name in rule.get("resourceNames") or ("",):
                    yield replace(one, name=name)


def aggregated_rules(store: Store, role: Obj) -> list[Obj]:
    """The rules that an aggregating ClusterRole has: those of all roles that its selectors match."""
    selectors = (role.get("aggregationRule") or {}).get("clusterRoleSelectors") or ()
    rules: list[Obj] = []
    for entry in store.list(f"{GROUP}/clusterroles"):
        labels = entry.obj["metadata"].get("labels") or {}
        if entry.name != role["metadata"]["name"] and any(selector_matches(item, labels) for item in selectors):
            rules += [rule for rule in entry.obj.get("rules") or () if rule not in rules]
    return rules
