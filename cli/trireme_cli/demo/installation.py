"""The demo's cluster and operator: started, and ended by whoever comes next."""

import json
from dataclasses import asdict
from pathlib import Path

from trireme_cli import install, local
from trireme_cli.cluster import Cluster
from trireme_local.processes import ProcessRecord, terminate

OPERATOR_PATIENCE_SECONDS = 10.0


class Installation:
    """What a demo runs in one directory."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "cluster"
        self.logs = directory / "operator"
        self._record = directory / "operator.json"

    def start_cluster(self, nodes: int) -> Cluster:
        """API server, nodes and store. Raises typer.Exit, with the reason on standard error."""
        local.up(nodes=nodes, directory=self.home)
        return Cluster(self.home / "kubeconfig")

    def start_operator(self, cluster: Cluster) -> None:
        """CRDs, RBAC and an operator, of which a record is kept. Raises ClusterError."""
        install.install_into(cluster)
        process = install.start_operator(cluster, self.logs).process
        self._record.write_text(json.dumps(asdict(ProcessRecord.of(process.pid))))

    def take_down(self) -> None:
        """End all that runs here, also what an earlier demo left when it was killed. Raises typer.Exit."""
        if self._record.exists():
            terminate([ProcessRecord(**json.loads(self._record.read_text()))], OPERATOR_PATIENCE_SECONDS)
            self._record.unlink()
        local.down(directory=self.home)
