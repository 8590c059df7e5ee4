"""ReplicaSets and Deployments: defaults, rules and what `kubectl get` prints.

Source of rules and messages: ValidateDeployment and ValidateReplicaSet of Kubernetes' pkg/apis/apps/validation.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from .. import errors, names
from ..errors import Cause
from ..resource import Column, Resource, Subresource, WithStatus
from ..selectors import format_selector, selector_matches
from ..store import Obj
from ..tables import AGE, NAME, object_age
from . import placement_rules, pod_rules
from .pods import default_spec

GROUP = "apps"
RECREATE, ROLLING_UPDATE = "Recreate", "RollingUpdate"
SCALE_PATHS = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".spec.selector",
}
_PERCENT = re.compile(r"^[0-9]+%$")
_WIDE = (
    Column("Containers", description="Names of each container in the template.", priority=1),
    Column("Images", description="Images referenced by each container in the template.", priority=1),
    Column("Selector", description="Label selector for the pods that this workload owns.", priority=1),
)
_COUNTS = (
    "availableReplicas",
    "fullyLabeledReplicas",
    "observedGeneration",
    "readyReplicas",
    "replicas",
    "unavailableReplicas",
    "updatedReplicas",
)


def _not_negative(values: Obj, keys: tuple[str, ...], field: str) -> list[Cause]:
    text = "must be greater than or equal to 0"
    return [errors.invalid_value(f"{field}.{key}", values[key], text) for key in keys if values.get(key, 0) < 0]


def default_template(template: Obj) -> None:
    """Fill in the defaults of a pod template, in place."""
    template.setdefault("metadata", {})
    default_spec(template.setdefault("spec", {}))


def _template(template: Obj, selector: Obj) -> list[Cause]:
    """Rules of a template whose pods a ReplicaSet keeps: its labels, its pod spec, restartPolicy Always."""
    at, found = "spec.template", []
    labels = template.get("metadata", {}).get("labels", {})
    if (selector.get("matchLabels") or selector.get("matchExpressions")) and not selector_matches(selector, labels):
        text = "`selector` does not match template `labels`"
        found.append(errors.invalid_value(f"{at}.metadata.labels", labels, text))
    found += names.labels(labels, f"{at}.metadata.labels")
    for key in template.get("metadata", {}).get("annotations", {}):
        problems = names.qualified(key.lower())
        found += [errors.invalid_value(f"{at}.metadata.annotations", key, text) for text in problems]
    spec = template["spec"]
    found += [dataclasses.replace(cause, field=f"{at}.{cause.field}") for cause in pod_rules.validate_spec(spec)]
    if spec.get("restartPolicy") != "Always":
        policy = spec.get("restartPolicy")
        found.append(errors.unsupported_value(f"{at}.spec.restartPolicy", policy, ("Always",)))
    if "activeDeadlineSeconds" in spec:
        text = "activeDeadlineSeconds in ReplicaSet is not Supported"
        found.append(errors.forbidden_value(f"{at}.spec.activeDeadlineSeconds", text))
    return found


def _selected_template(spec: Obj, kind: str) -> list[Cause]:
    """Selector and template of a ReplicaSet or Deployment; `kind` is how the message names it."""
    selector, found = spec.get("selector"), []
    if selector is None:
        found.append(errors.required("spec.selector"))
    else:
        found += placement_rules.label_selector(selector, "spec.selector")
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            text = f"empty selector is invalid for {kind}"
            found.append(errors.invalid_value("spec.selector", selector, text))
    # A term with an operator that does not exist has been refused above and cannot be matched.
    return found + _template(spec["template"], selector if selector is not None and not found else {})


def _immutable_selector(new: Obj, old: Obj) -> list[Cause]:
    selector = new["spec"].get("selector")
    if selector == old["spec"].get("selector"):
        return []
    return [errors.invalid_value("spec.selector", selector, "field is immutable")]


class WorkloadStrategy(WithStatus):
    """What ReplicaSets and Deployments share."""

    has_generation = True
    returns_deleted = False

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("replicas", 1)
        default_template(spec.setdefault("template", {}))
        # Go leaves counts of zero out.
        status = obj.get("status", {})
        for key in _COUNTS:
            if status.get(key) == 0 and not (key == "replicas" and self.definition.endswith("ReplicaSet")):
                del status[key]

    def prepare_create(self, obj: Obj) -> None:
        super().prepare_create(obj)
        obj["status"] = {}

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        return self.validate(new) + _immutable_selector(new, old)

    def validate_status_update(self, new: Obj, old: Obj) -> list[Cause]:
        status = new.get("status", {})
        found = _not_negative(status, _COUNTS, "status")
        total = status.get("replicas", 0)
        for key in ("fullyLabeledReplicas", "readyReplicas", "availableReplicas", "updatedReplicas"):
            if status.get(key, 0) > total:
                text = "cannot be greater than status.replicas"
                found.append(errors.invalid_value(f"status.{key}", status[key], text))
        if status.get("availableReplicas", 0) > status.get("readyReplicas", 0):
            text = "cannot be greater than readyReplicas"
            found.append(errors.invalid_value("status.availableReplicas", status["availableReplicas"], text))
        return found

    def _wide(self, obj: Obj) -> list[str]:
        spec = obj["spec"]
        containers = spec["template"]["spec"].get("containers", [])
        listed = (",".join(item.get(key, "") for item in containers) for key in ("name", "image"))
        return [*listed, format_selector(spec.get("selector"))]


class ReplicaSetStrategy(WorkloadStrategy):
    """ReplicaSets."""

    columns = (
        NAME,
        Column("Desired", "integer", description="Number of desired pods."),
        Column("Current", "integer", description="The most recently observed number of non-terminating pods."),
        Column("Ready", "integer", description="The number of non-terminating pods with a Ready Condition."),
        AGE,
        *_WIDE,
    )

    def prepare_create(self, obj: Obj) -> None:
        obj["status"] = {"replicas": 0}

    def validate(self, obj: Obj) -> list[Cause]:
        spec = obj["spec"]
        found = _not_negative(spec, ("replicas", "minReadySeconds"), "spec")
        return found + _selected_template(spec, "deployment")

    def cells(self, obj: Obj) -> list[Any]:
        status = obj.get("status", {})
        counts = [obj["spec"].get("replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
        return [obj["metadata"]["name"], *counts, object_age(obj), *self._wide(obj)]


class DeploymentStrategy(WorkloadStrategy):
    """Deployments; a changed annotation raises the generation as a changed spec does."""

    columns = (
        NAME,
        Column("Ready", description="Number of the pod with ready state"),
        Column("Up-to-date", description="Total number of non-terminating pods with the desired template spec."),
        Column("Available", description="Total number of available non-terminating pods."),
        AGE,
        *_WIDE,
    )

    def default(self, obj: Obj) -> None:
        super().default(obj)
        spec = obj["spec"]
        strategy = spec.setdefault("strategy", {})
        if not strategy.get("type"):
            strategy["type"] = ROLLING_UPDATE
        if strategy["type"] == ROLLING_UPDATE:
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", "25%")
            rolling.setdefault("maxSurge", "25%")
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("progressDeadlineSeconds", 600)

    def validate(self, obj: Obj) -> list[Cause]:
        spec = obj["spec"]
        keys = ("replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds")
        found = _not_negative(spec, keys, "spec") + _selected_template(spec, "deployment")
        found += _strategy(spec["strategy"], "spec.strategy")
        deadline = spec["progressDeadlineSeconds"]
        if 0 <= deadline <= spec.get("minReadySeconds", 0):
            text = "must be greater than minReadySeconds"
            found.append(errors.invalid_value("spec.progressDeadlineSeconds", deadline, text))
        return found

    def generation_changed(self, new: Obj, old: Obj) -> bool:
        annotations = new["metadata"].get("annotations") or {}, old["metadata"].get("annotations") or {}
        return bool(new["spec"] != old["spec"] or annotations[0] != annotations[1])

    def prepare_status_update(self, new: Obj, old: Obj) -> None:
        super().prepare_status_update(new, old)
        # Of metadata, annotations would count as a change of the deployment itself.
        for key in ("labels", "annotations"):
            if key in old["metadata"]:
                new["metadata"][key] = old["metadata"][key]
            else:
                new["metadata"].pop(key, None)

    def cells(self, obj: Obj) -> list[Any]:
        spec, status = obj["spec"], obj.get("status", {})
        return [
            obj["metadata"]["name"],
            f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}",
            status.get("updatedReplicas", 0),
            status.get("availableReplicas", 0),
            object_age(obj),
            *self._wide(obj),
        ]


def _amount(value: int | str, field: str) -> list[Cause]:
    """A number of pods, or a percentage of them."""
    if isinstance(value, int):
        return [] if value >= 0 else [errors.invalid_value(field, value, "must be greater than or equal to 0")]
    text = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex "
    text += "used for validation is '[0-9]+%')"
    return [] if _PERCENT.match(value) else [errors.invalid_value(field, value, text)]


def _strategy(strategy: Obj, field: str) -> list[Cause]:
    kind, rolling = strategy["type"], strategy.get("rollingUpdate", {})
    if kind == RECREATE:
        text = "may not be specified when strategy `type` is 'Recreate'"
        return [] if "rollingUpdate" not in strategy else [errors.forbidden_value(f"{field}.rollingUpdate", text)]
    if kind != ROLLING_UPDATE:
        return [errors.unsupported_value(field, kind, (RECREATE, ROLLING_UPDATE))]
    at = f"{field}.rollingUpdate"
    unavailable, surge = rolling["maxUnavailable"], rolling["maxSurge"]
    found = _amount(unavailable, f"{at}.maxUnavailable") + _amount(surge, f"{at}.maxSurge")
    if found:
        return found
    if _number(unavailable) == 0 and _number(surge) == 0:
        text = "may not be 0 when `maxSurge` is 0"
        found.append(errors.invalid_value(f"{at}.maxUnavailable", unavailable, text))
    if isinstance(unavailable, str) and _number(unavailable) > 100:
        found.append(errors.invalid_value(f"{at}.maxUnavailable", unavailable, "must not be greater than 100%"))
    return found


def _number(value: int | str) -> int:
    return value if isinstance(value, int) else int(value[:-1])


def resources() -> list[Resource]:
    """The workload resources, with their status and scale."""
    prefix = "io.k8s.api.apps.v1"
    found = [
        Resource(
            GROUP, "v1", "deployments", "Deployment", True, DeploymentStrategy(f"{prefix}.Deployment"),
            short_names=("deploy",), categories=("all",),
        ),
        Resource(
            GROUP, "v1", "replicasets", "ReplicaSet", True, ReplicaSetStrategy(f"{prefix}.ReplicaSet"),
            short_names=("rs",), categories=("all",),
        ),
    ]  # fmt: skip
    for resource in found:
        resource.with_status()
        resource.subresources["scale"] = Subresource("Scale", ("get", "patch", "update"), "autoscaling", "v1")
        resource.scale_paths = SCALE_PATHS
    return found
