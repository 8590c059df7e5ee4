"""Kubernetes quantities and what a pod asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from math import ceil

from trireme_local.kube import JsonObject

_SUFFIXES = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_BINARY = {f"{letter}i": power for power, letter in enumerate("KMGTPE", start=1)}


class InvalidQuantity(ValueError):
    """The text is not a Kubernetes quantity."""


def parse_quantity(text: str | int | float) -> Decimal:
    """The number that a quantity such as 250m, 1.5Gi or 2e3 stands for.

    Source: k8s.io/apimachinery/pkg/api/resource. Written here because importing the official
    client's parser also loads its synchronous model classes, a second of start-up per process.
    """
    value = str(text).strip()
    try:
        if value[-2:] in _BINARY:
            return Decimal(value[:-2]) * Decimal(1024) ** _BINARY[value[-2:]]
        if value[-1:] in _SUFFIXES and not value[-1:].isdigit():
            return Decimal(value[:-1]) * Decimal(1000) ** _SUFFIXES[value[-1:]]
        return Decimal(value)
    except ArithmeticError as error:
        raise InvalidQuantity(f"{text!r} is not a quantity") from error


def milli(text: str | int | float) -> int:
    """The quantity in thousandths, rounded up."""
    return ceil(parse_quantity(text) * 1000)


Amounts = dict[str, int]
"""Resource name -> thousandths of its unit."""


def amounts(quantities: Mapping[str, str | int | float] | None) -> Amounts:
    """The quantities in thousandths."""
    return {name: milli(value) for name, value in (quantities or {}).items()}


def add(left: Amounts, right: Amounts) -> Amounts:
    """Sum per resource."""
    return {name: left.get(name, 0) + right.get(name, 0) for name in left.keys() | right.keys()}


def _largest(left: Amounts, right: Amounts) -> Amounts:
    return {name: max(left.get(name, 0), right.get(name, 0)) for name in left.keys() | right.keys()}


def _container_amounts(container: JsonObject, which: str) -> Amounts:
    resources = container.get("resources") or {}
    found = amounts(resources.get(which))
    if which == "requests":
        # A limit without a request is the request too (API defaulting).
        for name, value in amounts(resources.get("limits")).items():
            found.setdefault(name, value)
    return found


def pod_amounts(pod: JsonObject, which: str = "requests") -> Amounts:
    """What the pod needs at once: the larger of all its containers and any one init container, plus overhead.

    Restartable init containers (sidecars) count with everything that starts after them. Pod-level
    resources, where given, replace the sum. Source: k8s.io/component-helpers/resource.PodRequests.
    """
    spec = pod["spec"]
    total: Amounts = {}
    for container in spec.get("containers") or []:
        total = add(total, _container_amounts(container, which))
    sidecars: Amounts = {}
    initial: Amounts = {}
    for container in spec.get("initContainers") or []:
        need = _container_amounts(container, which)
        if container.get("restartPolicy") == "Always":
            sidecars = add(sidecars, need)
            need = sidecars
        else:
            need = add(sidecars, need)
        initial = _largest(initial, need)
    total = _largest(add(total, sidecars), initial)
    total.update(amounts((spec.get("resources") or {}).get(which)))
    return add(total, amounts(spec.get("overhead")))


def is_finished(pod: JsonObject) -> bool:
    """True when no container of the pod will ever run again."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def used_amounts(pods: Iterable[JsonObject]) -> Amounts:
    """What the unfinished pods among `pods` occupy on a node, counting one of `pods` each."""
    used: Amounts = {"pods": 0}
    for pod in pods:
        if not is_finished(pod):
            used = add(used, pod_amounts(pod))
            used["pods"] += 1000
    return used


def lacking(need: Amounts, free: Amounts) -> list[str]:
    """Names of the resources of which `free` has less than `need`, sorted."""
    return sorted(name for name, value in need.items() if value > 0 and free.get(name, 0) < value)
