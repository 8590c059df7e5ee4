"""What the API server and the operator would say to a manifest before there is a pod."""

from typing import Any

from crd_evaluator import refusals

from trireme.resources import JobKind, kind_named
from trireme.resources.crdgen import crd


def admit(document: dict[str, Any]) -> None:
    """Admit a manifest of one of the four kinds. Raises what refuses it: CRD, model or planner."""
    kind = kind_named(document["kind"])
    assert document["apiVersion"] == kind.api_version
    schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert refusals(schema, document) == []
    spec = kind.parse(document["spec"])
    if isinstance(kind, JobKind):
        kind.make_plan(kind.settle(spec)[0])
