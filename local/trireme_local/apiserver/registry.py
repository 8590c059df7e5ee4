"""Which resources are served now: the built-in ones and those that CRDs add."""

from __future__ import annotations

from collections.abc import Iterator

from . import builtins, custom
from .resource import Resource
from .store import Obj, Store

CRD_KEY = "apiextensions.k8s.io/customresourcedefinitions"
# The order of kube-apiserver's own group priorities decides which group a bare name in kubectl means.
_GROUP_ORDER = (
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
)
# Groups whose only resources are reviews: created, answered and never stored.
REVIEWS: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "authentication.k8s.io": (
        ("tokenreviews", "TokenReview", False),
        ("selfsubjectreviews", "SelfSubjectReview", False),
    ),
    "authorization.k8s.io": (
        ("subjectaccessreviews", "SubjectAccessReview", False),
        ("selfsubjectaccessreviews", "SelfSubjectAccessReview", False),
        ("selfsubjectrulesreviews", "SelfSubjectRulesReview", False),
        ("localsubjectaccessreviews", "LocalSubjectAccessReview", True),
    ),
}


class Registry:
    """Resources by group, version and plural name."""

    def __init__(self, store: Store) -> None:
        self._builtin = {(item.group, item.version, item.plural): item for item in builtins.all_resources()}
        self._custom: dict[str, list[Resource]] = {}
        self._terminating: set[str] = set()
        self.generation = 0
        for entry in store.list(CRD_KEY):
            self.crd_changed(entry.obj)

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """The resource served under this group, version and plural name."""
        if found := self._builtin.get((group, version, plural)):
            return found
        for resource in self._custom.get(f"{plural}.{group}", ()):
            if resource.version == version:
                return resource
        return None

    def find_kind(self, group: str, version: str, kind: str) -> Resource | None:
        """The resource of a kind."""
        return next(
            (item for item in self.all() if (item.group, item.version, item.kind) == (group, version, kind)), None
        )

    def any_version(self, group: str, plural: str) -> Resource | None:
        """Some served version of a resource."""
        return next((item for item in self.all() if (item.group, item.plural) == (group, plural)), None)

    def all(self) -> Iterator[Resource]:
        """All served resources, built-in ones first."""
        yield from self._builtin.values()
        for resources in self._custom.values():
            yield from resources

    def groups(self) -> dict[str, list[str]]:
        """Served versions by named group, most preferred first."""
        found: dict[str, list[str]] = {group: ["v1"] for group in REVIEWS}
        for resource in self.all():
            if resource.group:
                versions = found.setdefault(resource.group, [])
                if resource.version not in versions:
                    versions.append(resource.version)
        for versions in found.values():
            versions.sort(key=version_priority)

        def order(group: str) -> tuple[int, str]:
            return (_GROUP_ORDER.index(group) if group in _GROUP_ORDER else len(_GROUP_ORDER), group)

        return {group: found[group] for group in sorted(found, key=order)}

    def in_version(self, group: str, version: str) -> list[Resource]:
        """Resources of one group and version, by name."""
        found = [item for item in self.all() if (item.group, item.version) == (group, version)]
        return sorted(found, key=lambda item: item.plural)

    def crd_changed(self, crd: Obj) -> None:
        """Serve what a new or changed CRD says."""
        name = crd["metadata"]["name"]
        self._custom[name] = custom.resources(crd)
        self._terminating.discard(name)
        if crd["metadata"].get("deletionTimestamp"):
            self._terminating.add(name)
        self.generation += 1

    def crd_removed(self, name: str) -> None:
        """Stop serving a CRD's resources."""
        self._custom.pop(name, None)
        self._terminating.discard(name)
        self.generation += 1

    def is_terminating(self, resource: Resource) -> bool:
        """Whether the CRD of this resource is being deleted."""
        return f"{resource.plural}.{resource.group}" in self._terminating

    def kind_in_use(self, group: str, kind: str, plural: str) -> bool:
        """Whether another resource of the group already has this kind or plural name."""
        return any(item.group == group and (item.kind == kind) != (item.plural == plural) for item in self.all())


def version_priority(version: str) -> tuple[int, int, int, str]:
    """Sort key of Kubernetes versions: GA before beta before alpha, newer first."""
    import re

    match = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if not match:
        return (3, 0, 0, version)
    level = {None: 0, "beta": 1, "alpha": 2}[match[2]]
    return (level, -int(match[1]), -int(match[3] or 0), version)
