"""The built-in resources that this server has, and the ones it only answers for."""

from __future__ import annotations

from ..resource import ALL_VERBS, Resource, Strategy, Subresource
from . import core, policy, services, workloads
from .crds import CrdStrategy
from .pods import PodStrategy

CORE = core.CORE
_POD_FIELDS = frozenset(
    {
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    }
)
_EVENT_FIELDS = frozenset(
    {
        f"involvedObject.{key}"
        for key in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    }
    | {"reason", "reportingComponent", "source", "type"}
)
_REGARDING = frozenset(
    {f"regarding.{key}" for key in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")}
    | {"reason", "reportingController", "type"}
)


class EventsV1(Resource):
    """Events as events.k8s.io/v1 shows them; they are stored in the core form."""

    _NAMES = (
        ("involvedObject", "regarding"),
        ("message", "note"),
        ("reportingComponent", "reportingController"),
        ("source", "deprecatedSource"),
        ("firstTimestamp", "deprecatedFirstTimestamp"),
        ("lastTimestamp", "deprecatedLastTimestamp"),
        ("count", "deprecatedCount"),
    )

    def to_served(self, obj: dict[str, object]) -> dict[str, object]:
        """Rename the core fields."""
        served = {**obj, "apiVersion": self.api_version}
        for stored, shown in self._NAMES:
            if stored in served:
                served[shown] = served.pop(stored)
        return served

    def to_stored(self, obj: dict[str, object]) -> dict[str, object]:
        """Rename back to the core fields."""
        stored = {**obj, "apiVersion": "v1"}
        for core_name, shown in self._NAMES:
            if shown in stored:
                stored[core_name] = stored.pop(shown)
        return stored


def _core() -> list[Resource]:
    def one(plural: str, kind: str, strategy: Strategy, namespaced: bool = True, *shorts: str) -> Resource:
        return Resource("", "v1", plural, kind, namespaced, strategy, short_names=shorts)

    pods = one("pods", "Pod", PodStrategy(f"{CORE}.Pod"), True, "po").with_status()
    pods.categories = ("all",)
    pods.selectable_fields = _POD_FIELDS
    pods.subresources |= {
        "log": Subresource("Pod", ("get",)),
        "binding": Subresource("Binding", ("create",)),
        "eviction": Subresource("Eviction", ("create",), "policy", "v1"),
    }
    nodes = one("nodes", "Node", core.NodeStrategy(f"{CORE}.Node"), False, "no").with_status()
    nodes.selectable_fields = frozenset({"spec.unschedulable"})
    spaces = one("namespaces", "Namespace", core.NamespaceStrategy(f"{CORE}.Namespace"), False, "ns").with_status()
    spaces.selectable_fields = frozenset({"status.phase"})
    spaces.verbs = tuple(verb for verb in ALL_VERBS if verb != "deletecollection")
    spaces.subresources["finalize"] = Subresource("Namespace", ("update",))
    secrets = one("secrets", "Secret", core.SecretStrategy(f"{CORE}.Secret"))
    secrets.selectable_fields = frozenset({"type"})
    accounts = one(
        "serviceaccounts", "ServiceAccount", core.ServiceAccountStrategy(f"{CORE}.ServiceAccount"), True, "sa"
    )
    accounts.subresources["token"] = Subresource("TokenRequest", ("create",), "authentication.k8s.io", "v1")
    events = one("events", "Event", core.EventStrategy(f"{CORE}.Event"), True, "ev")
    events.selectable_fields = _EVENT_FIELDS
    service = one("services", "Service", services.ServiceStrategy(f"{CORE}.Service"), True, "svc").with_status()
    service.categories = ("all",)
    quota = one("resourcequotas", "ResourceQuota", policy.NamedStrategy(f"{CORE}.ResourceQuota"), True, "quota")
    return [
        pods,
        nodes,
        spaces,
        secrets,
        accounts,
        events,
        service,
        quota.with_status(),
        one("configmaps", "ConfigMap", core.ConfigMapStrategy(f"{CORE}.ConfigMap"), True, "cm"),
    ]


def _rbac() -> list[Resource]:
    group, prefix = "rbac.authorization.k8s.io", "io.k8s.api.rbac.v1"
    return [
        Resource(group, "v1", "roles", "Role", True, policy.RoleStrategy(f"{prefix}.Role", False)),
        Resource(group, "v1", "clusterroles", "ClusterRole", False, policy.RoleStrategy(f"{prefix}.ClusterRole", True)),
        Resource(
            group, "v1", "rolebindings", "RoleBinding", True, policy.BindingStrategy(f"{prefix}.RoleBinding", False)
        ),
        Resource(
            group,
            "v1",
            "clusterrolebindings",
            "ClusterRoleBinding",
            False,
            policy.BindingStrategy(f"{prefix}.ClusterRoleBinding", True),
        ),
    ]


def all_resources() -> list[Resource]:
    """Every built-in resource that is stored."""
    events = EventsV1(
        "events.k8s.io", "v1", "events", "Event", True, core.EventStrategy("io.k8s.api.events.v1.Event"), "event",
        ("ev",), storage="/events", selectable_fields=_REGARDING,
    )  # fmt: skip
    lease = policy.LeaseStrategy("io.k8s.api.coordination.v1.Lease")
    slices = services.EndpointSliceStrategy("io.k8s.api.discovery.v1.EndpointSlice")
    budget = policy.DisruptionBudgetStrategy("io.k8s.api.policy.v1.PodDisruptionBudget")
    priority = policy.PriorityClassStrategy("io.k8s.api.scheduling.v1.PriorityClass")
    crd = CrdStrategy("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition")
    return [
        *_core(),
        *workloads.resources(),
        events,
        Resource("coordination.k8s.io", "v1", "leases", "Lease", True, lease),
        Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True, slices),
        Resource(
            "policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True, budget, short_names=("pdb",)
        ).with_status(),
        Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", False, priority, short_names=("pc",)),
        *_rbac(),
        Resource(
            "apiextensions.k8s.io",
            "v1",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            False,
            crd,
            short_names=("crd", "crds"),
            categories=("api-extensions",),
        ).with_status(),
    ]
