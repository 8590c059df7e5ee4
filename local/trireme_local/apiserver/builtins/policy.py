"""Leases, priority classes, disruption budgets, quotas and the RBAC kinds."""

from __future__ import annotations

from typing import Any

from .. import errors, names
from ..errors import Cause
from ..resource import Column, Strategy, WithStatus
from ..store import Obj
from ..tables import AGE, NAME, object_age


class NamedStrategy(Strategy):
    """A kind without rules of its own, shown by name and age."""

    columns = (NAME, AGE)

    def cells(self, obj: Obj) -> list[Any]:
        return [obj["metadata"]["name"], object_age(obj)]


class LeaseStrategy(Strategy):
    """Leases; an update must carry a resourceVersion, a PUT may create."""

    unconditional_update = False
    create_on_update = True
    columns = (NAME, Column("Holder", description="holderIdentity contains the identity of the holder."), AGE)

    def validate(self, obj: Obj) -> list[Cause]:
        spec, found = obj.get("spec", {}), []
        if (seconds := spec.get("leaseDurationSeconds")) is not None and seconds <= 0:
            found.append(errors.invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0"))
        if (count := spec.get("leaseTransitions")) is not None and count < 0:
            text = "must be greater than or equal to 0"
            found.append(errors.invalid_value("spec.leaseTransitions", count, text))
        return found

    def cells(self, obj: Obj) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("spec", {}).get("holderIdentity", ""), object_age(obj)]


class PriorityClassStrategy(Strategy):
    """PriorityClasses: value and preemptionPolicy are immutable."""

    columns = (
        NAME,
        Column("Value", "integer", description="The value of this priority class."),
        Column("Global-Default", "boolean", description="Whether it is the default."),
        AGE,
        Column("PreemptionPolicy", description="Policy for preempting pods.", priority=1),
    )

    def default(self, obj: Obj) -> None:
        obj.setdefault("preemptionPolicy", "PreemptLowerPriority")
        obj.setdefault("value", 0)

    def validate(self, obj: Obj) -> list[Cause]:
        name, value = obj["metadata"].get("name", ""), obj["value"]
        if name.startswith("system-") and name not in ("system-cluster-critical", "system-node-critical"):
            text = "priority class names with 'system-' prefix are reserved for system use only"
            return [errors.forbidden_value("metadata.name", text)]
        if value > 1_000_000_000 and not name.startswith("system-"):
            text = "maximum allowed value of a user defined priority is 1000000000"
            return [errors.forbidden_value("value", text)]
        return []

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        found = []
        if new["value"] != old["value"]:
            found.append(errors.forbidden_value("value", "may not be changed in an update."))
        if new["preemptionPolicy"] != old["preemptionPolicy"]:
            found.append(errors.invalid_value("preemptionPolicy", new["preemptionPolicy"], "field is immutable"))
        return found

    def cells(self, obj: Obj) -> list[Any]:
        default = bool(obj.get("globalDefault"))
        return [obj["metadata"]["name"], obj["value"], default, object_age(obj), obj["preemptionPolicy"]]


class DisruptionBudgetStrategy(WithStatus):
    """PodDisruptionBudgets."""

    has_generation = True
    unconditional_update = False
    columns = (
        NAME,
        Column("Min Available", description="The minimum number of pods that must be available."),
        Column("Max Unavailable", description="The maximum number of pods that may be unavailable."),
        Column("Allowed Disruptions", "integer", description="Calculated number of pods that may be disrupted."),
        AGE,
    )

    def prepare_create(self, obj: Obj) -> None:
        obj["status"] = {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}

    def validate(self, obj: Obj) -> list[Cause]:
        spec = obj.get("spec", {})
        if "minAvailable" in spec and "maxUnavailable" in spec:
            text = "minAvailable and maxUnavailable cannot be both set"
            return [errors.invalid_value("spec", spec, text)]
        return []

    def cells(self, obj: Obj) -> list[Any]:
        spec = obj.get("spec", {})
        return [
            obj["metadata"]["name"],
            str(spec.get("minAvailable", "N/A")),
            str(spec.get("maxUnavailable", "N/A")),
            obj.get("status", {}).get("disruptionsAllowed", 0),
            object_age(obj),
        ]


class RoleStrategy(Strategy):
    """Roles and ClusterRoles."""

    name_rule = staticmethod(names.path_segment)
    create_on_update = True
    columns = (NAME, Column("Created At", description="When it was created"))

    def __init__(self, definition: str, cluster: bool) -> None:
        super().__init__(definition)
        self._cluster = cluster

    def default(self, obj: Obj) -> None:
        obj.setdefault("rules", [])

    def validate(self, obj: Obj) -> list[Cause]:
        found = []
        for index, rule in enumerate(obj.get("rules") or ()):
            at = f"rules[{index}]"
            if not rule.get("verbs"):
                found.append(errors.required(f"{at}.verbs", "verbs must contain at least one value"))
            if rule.get("nonResourceURLs"):
                if not self._cluster:
                    text = "namespaced rules cannot apply to non-resource URLs"
                    found.append(errors.invalid_value(f"{at}.nonResourceURLs", rule["nonResourceURLs"], text))
                if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
                    text = "rules cannot apply to both regular resources and non-resource URLs"
                    found.append(errors.invalid_value(f"{at}.nonResourceURLs", rule["nonResourceURLs"], text))
                continue
            if not rule.get("apiGroups"):
                text = "resource rules must supply at least one api group"
                found.append(errors.required(f"{at}.apiGroups", text))
            if not rule.get("resources"):
                text = "resource rules must supply at least one resource"
                found.append(errors.required(f"{at}.resources", text))
        return found

    def cells(self, obj: Obj) -> list[Any]:
        return [obj["metadata"]["name"], obj["metadata"].get("creationTimestamp", "<unknown>")]


class BindingStrategy(Strategy):
    """RoleBindings and ClusterRoleBindings: roleRef is immutable."""

    name_rule = staticmethod(names.path_segment)
    create_on_update = True
    columns = (
        NAME,
        Column("Role", description="Role this binding refers to."),
        AGE,
        Column("Users", description="Users in the roleBinding", priority=1),
        Column("Groups", description="Groups in the roleBinding", priority=1),
        Column("ServiceAccounts", description="ServiceAccounts in the roleBinding", priority=1),
    )

    def __init__(self, definition: str, cluster: bool) -> None:
        super().__init__(definition)
        self._cluster = cluster

    def default(self, obj: Obj) -> None:
        for subject in obj.get("subjects") or ():
            if subject.get("kind") in ("User", "Group"):
                subject.setdefault("apiGroup", "rbac.authorization.k8s.io")
        if "roleRef" in obj:
            obj["roleRef"].setdefault("apiGroup", "rbac.authorization.k8s.io")

    def validate(self, obj: Obj) -> list[Cause]:
        reference, found = obj.get("roleRef") or {}, []
        kinds = ("ClusterRole",) if self._cluster else ("Role", "ClusterRole")
        if reference.get("apiGroup", "rbac.authorization.k8s.io") != "rbac.authorization.k8s.io":
            found.append(
                errors.unsupported_value("roleRef.apiGroup", reference["apiGroup"], ("rbac.authorization.k8s.io",))
            )
        if reference.get("kind") not in kinds:
            found.append(errors.unsupported_value("roleRef.kind", reference.get("kind", ""), kinds))
        if not reference.get("name"):
            found.append(errors.required("roleRef.name"))
        for index, subject in enumerate(obj.get("subjects") or ()):
            at = f"subjects[{index}]"
            if not subject.get("name"):
                found.append(errors.required(f"{at}.name"))
            if subject.get("kind") not in ("ServiceAccount", "User", "Group"):
                supported = ("ServiceAccount", "User", "Group")
                found.append(errors.unsupported_value(f"{at}.kind", subject.get("kind", ""), supported))
            if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
                found.append(errors.required(f"{at}.namespace"))
        return found

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        found = self.validate(new)
        if new.get("roleRef") != old.get("roleRef"):
            found.append(errors.invalid_value("roleRef", new.get("roleRef"), "cannot change roleRef"))
        return found

    def cells(self, obj: Obj) -> list[Any]:
        reference, subjects = obj.get("roleRef", {}), obj.get("subjects") or []

        def listed(kind: str) -> str:
            return ", ".join(
                f"{item['namespace']}/{item['name']}" if kind == "ServiceAccount" else item["name"]
                for item in subjects
                if item.get("kind") == kind
            )

        return [
            obj["metadata"]["name"],
            f"{reference.get('kind', '')}/{reference.get('name', '')}",
            object_age(obj),
            listed("User"),
            listed("Group"),
            listed("ServiceAccount"),
        ]
