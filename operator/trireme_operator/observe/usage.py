"""What is free on each node, kept up to date pod by pod: a pass must not cost what the whole cluster has pods."""

from trireme_operator.decide import NodeView
from trireme_operator.observe.cache import Cache, JsonObject, Key, key_of
from trireme_operator.observe.views import node_view, requests_of

POD_SLOT = 1000
"""One pod, in thousandths like all amounts."""


class NodeUsage:
    """Requests of the pods on each node, and the nodes seen with what these leave free."""

    def __init__(self) -> None:
        self._pods: dict[Key, tuple[str, dict[str, int]]] = {}  # node and requests of each pod that takes room
        self._used: dict[str, dict[str, int]] = {}
        self._on: dict[str, set[Key]] = {}
        self._views: dict[str, tuple[JsonObject, NodeView]] = {}

    def pod_changed(self, old: JsonObject | None, new: JsonObject | None) -> None:
        """A pod came, changed or went."""
        if old is not None:
            self._forget(key_of(old))
        if new is None:
            return
        node = (new.get("spec") or {}).get("nodeName")
        if not node or (new.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return
        key, requests = key_of(new), {**requests_of(new), "pods": POD_SLOT}
        self._pods[key] = (node, requests)
        self._on.setdefault(node, set()).add(key)
        self._add(node, requests, 1)

    def pods_on(self, node: str) -> set[Key]:
        """Pods on a node that have not ended."""
        return self._on.get(node, set())

    def views(self, nodes: Cache) -> tuple[NodeView, ...]:
        """All nodes with what is free on them."""
        found = tuple(self._view(raw) for raw in nodes)
        if len(self._views) > len(found):
            present = {view.name for view in found}
            self._views = {name: view for name, view in self._views.items() if name in present}
        return found

    def _view(self, raw: JsonObject) -> NodeView:
        name = raw["metadata"]["name"]
        known = self._views.get(name)
        if known is None or known[0] is not raw:
            known = self._views[name] = (raw, node_view(raw, self._used.get(name, {})))
        return known[1]

    def _forget(self, key: Key) -> None:
        known = self._pods.pop(key, None)
        if known is not None:
            node, requests = known
            self._on[node].discard(key)
            self._add(node, requests, -1)
            if not self._on[node]:
                del self._on[node], self._used[node]

    def _add(self, node: str, requests: dict[str, int], sign: int) -> None:
        used = self._used.setdefault(node, {})
        for name, amount in requests.items():
            used[name] = used.get(name, 0) + sign * amount
        self._views.pop(node, None)
