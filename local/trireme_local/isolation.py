"""Whose containers get file systems of their own, as the user of a cluster says it and as its nodes are told."""

from __future__ import annotations

import os
from collections.abc import Callable

from trireme_local.errors import ClusterError

# Those of pods that ask for a read-only root, where this computer can make them; those of all pods; none.
ISOLATIONS = ("auto", "all", "none")
VARIABLE = "TRIREME_LOCAL_ISOLATION"


def named(isolate: bool | None) -> str:
    """The one of `ISOLATIONS` that `--isolate`, `--no-isolate` or neither stands for."""
    return "auto" if isolate is None else "all" if isolate else "none"


def default() -> str:
    """What a node does that is told nothing: what the variable says, which need not be one of `ISOLATIONS`."""
    return os.environ.get(VARIABLE, "auto")


def check(isolate: bool | None, say: Callable[[str], None]) -> None:
    """Say in one line why the nodes of a new cluster will isolate no pod. Raises `ClusterError` where they have to."""
    wanted = default() if isolate is None else named(isolate)
    if wanted == "none":
        return
    # Imported late, as it is needed once in a cluster's life.
    from trireme_local.node.namespaces import OFF, MountNamespaces, NamespacesUnavailable

    try:
        MountNamespaces.probe()
    except NamespacesUnavailable as error:
        if wanted == "all":
            raise ClusterError(f"--isolate does not work here: {error}") from error
        say(f"isolation is off ({error}): {OFF}")
