"""Bug: no resourceVersion counts: a status computed from an old read replaces a newer one."""

import pytest
from sim_cluster import Cluster


def seed(patch: pytest.MonkeyPatch) -> None:
    original = Cluster.put_status

    def put_status(self: Cluster, body):  # type: ignore[no-untyped-def]
        body = {**body, "metadata": {**body["metadata"], "resourceVersion": self.job["metadata"]["resourceVersion"]}}
        return original(self, body)

    patch.setattr(Cluster, "put_status", put_status)
