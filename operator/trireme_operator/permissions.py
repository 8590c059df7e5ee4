"""What the operator must be allowed to do; a test compares it with charts/trireme/files/operator-rules.yaml."""

from collections.abc import Iterator
from dataclasses import dataclass

from trireme.resources import GROUP, INFERENCE_SERVICE, all_kinds, job_kinds
from trireme.resources.crdgen import crd_name

CRD_GROUP, CRDS = "apiextensions.k8s.io", "customresourcedefinitions"


@dataclass(frozen=True, order=True)
class Permission:
    """One verb on one resource, or on one object of it."""

    group: str
    resource: str
    """Plural, with the subresource after a slash."""
    verb: str
    name: str = ""

    def __str__(self) -> str:
        of = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {of}" + (f" {self.name!r}" if self.name else "")


def namespaced() -> frozenset[Permission]:
    """In each namespace that the operator serves."""
    jobs, service = [kind.plural for kind in job_kinds()], INFERENCE_SERVICE.plural
    return frozenset(
        [
            *_each(GROUP, jobs, "get", "list", "watch", "delete"),
            *_each(GROUP, [f"{plural}/status" for plural in [*jobs, service]], "update"),
            *_each(GROUP, [service], "list", "watch"),
            *_each("apps", ["deployments"], "list", "watch", "create", "patch", "delete"),
            *_each("policy", ["poddisruptionbudgets"], "list", "watch", "create", "patch", "delete"),
            *_each("", ["services"], "list", "watch", "patch", "create", "get"),
            *_each("", ["configmaps"], "patch", "create", "get"),
            *_each("", ["pods"], "list", "watch", "create", "delete"),
            *_each("", ["secrets"], "create"),
            *_each("", ["events"], "create", "patch"),
        ]
    )


def clusterwide() -> frozenset[Permission]:
    """Of what lies in no namespace; an operator that serves only some namespaces, or is told so, may be without."""
    crds = (Permission(CRD_GROUP, CRDS, "get", crd_name(info)) for info in all_kinds())
    return frozenset([*_each("", ["nodes"], "list", "watch"), *crds])


def leader_election() -> frozenset[Permission]:
    """In the namespace of the Lease."""
    return frozenset(_each("coordination.k8s.io", ["leases"], "get", "create", "update"))


def _each(group: str, resources: list[str], *verbs: str) -> Iterator[Permission]:
    return (Permission(group, resource, verb) for resource in resources for verb in verbs)
