"""Real control plane binaries (kube-apiserver, etcd, and more where they are) in place of the local API server.

The binaries are the user's own, in one directory, as KUBEBUILDER_ASSETS of envtest has them. Where the directory has no
kube-controller-manager or no kube-scheduler, the local controllers, plain API clients, do that work.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trireme_local.apiserver import identities, kubeconfig
from trireme_local.apiserver.pki import Pki
from trireme_local.errors import ClusterError

NEEDED = ("kube-apiserver", "etcd")
# These give up for good when the API server is not healthy ten seconds after their own start.
IMPATIENT = ("controller-manager", "scheduler")
ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
DEFAULT_ASSETS = Path("/usr/local/kubebuilder/bin")
SERVICE_NETWORK = ipaddress.IPv4Network("10.96.0.0/16")
ISSUER = "https://kubernetes.default.svc.cluster.local"


def assets() -> Path:
    """Where control plane binaries are looked for when no directory is named."""
    return Path(os.environ.get(ASSETS_VARIABLE, DEFAULT_ASSETS))


def missing_binaries(directory: Path) -> str:
    """Why no control plane can be started from the directory, "" when one can."""
    missing = [name for name in NEEDED if not _has(directory, name)]
    return f"no {' and no '.join(missing)} in {directory}" if missing else ""


def _has(directory: Path, name: str) -> bool:
    return os.access(directory / name, os.X_OK)


@dataclass(frozen=True)
class RealControlPlane:
    """Commands of one control plane that listens on a loopback address and keeps its state in `data`."""

    binaries: Path
    data: Path
    address: str
    port: int
    etcd_address: str
    grace_seconds: float
    service_network: ipaddress.IPv4Network = SERVICE_NETWORK
    etcd_port: int = 2379
    etcd_peer_port: int = 2380

    @property
    def url(self) -> str:
        """The API server's address."""
        return f"https://{self.address}:{self.port}"

    @property
    def admin_kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.data / "admin.kubeconfig"

    def prepare(self) -> None:
        """Write certificates, the administrator's token and kubeconfig. Raises `ClusterError`."""
        if missing := missing_binaries(self.binaries):
            raise ClusterError(f"no control plane can be started: {missing}")
        pki = Pki(self.data / "pki", (self.address,))
        token = identities.issue(self.data, identities.ADMIN_USER, [identities.ADMIN_GROUP])
        kubeconfig.write(self.admin_kubeconfig, server=self.url, token=token, ca_path=pki.ca_path)

    def commands(self) -> dict[str, list[str]]:
        """Daemon -> command line, in the order in which they start."""
        commands = {"etcd": self._etcd(), "apiserver": self._apiserver()}
        if self.has_controller_manager:
            commands["controller-manager"] = self._controller_manager()
        if self.has_scheduler:
            commands["scheduler"] = self._scheduler()
        return commands

    @property
    def has_controller_manager(self) -> bool:
        """Whether the directory has a kube-controller-manager."""
        return _has(self.binaries, "kube-controller-manager")

    @property
    def has_scheduler(self) -> bool:
        """Whether the directory has a kube-scheduler."""
        return _has(self.binaries, "kube-scheduler")

    def _command(self, name: str, flags: Mapping[str, object]) -> list[str]:
        return [str(self.binaries / name), *(f"--{flag}={value}" for flag, value in flags.items())]

    def _etcd(self) -> list[str]:
        clients = f"http://{self.etcd_address}:{self.etcd_port}"
        peers = f"http://{self.etcd_address}:{self.etcd_peer_port}"
        flags = {
            "data-dir": self.data / "etcd",
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
        }
        return self._command("etcd", flags)

    def _apiserver(self) -> list[str]:
        keys = self.data / "pki"
        flags: dict[str, object] = {
            "etcd-servers": f"http://{self.etcd_address}:{self.etcd_port}",
            "bind-address": self.address,
            "advertise-address": self.address,
            "secure-port": self.port,
            # Its own Endpoints object may not name a loopback address.
            "endpoint-reconciler-type": "none",
            "service-cluster-ip-range": self.service_network,
            "tls-cert-file": keys / "apiserver.crt",
            "tls-private-key-file": keys / "apiserver.key",
            "token-auth-file": identities.tokens_path(self.data),
            "authorization-mode": "Node,RBAC",
            # As kubeadm has it: who may run privileged containers is not this server's to say.
            "allow-privileged": "true",
            "service-account-issuer": ISSUER,
            "service-account-signing-key-file": keys / "sa.key",
            "service-account-key-file": keys / "sa.pub",
            # It asks nodes for logs over https without verifying their certificates; their names are in no DNS.
            "kubelet-preferred-address-types": "InternalIP",
        }
        return self._command("kube-apiserver", flags)

    def _controller_manager(self) -> list[str]:
        keys = self.data / "pki"
        flags = {
            "kubeconfig": self.admin_kubeconfig,
            "leader-elect": "false",
            "secure-port": 0,
            "service-account-private-key-file": keys / "sa.key",
            "root-ca-file": keys / "ca.crt",
            "node-monitor-grace-period": f"{self.grace_seconds:g}s",
            "node-monitor-period": "1s",
        }
        return self._command("kube-controller-manager", flags)

    def _scheduler(self) -> list[str]:
        flags = {"kubeconfig": self.admin_kubeconfig, "leader-elect": "false", "secure-port": 0}
        return self._command("kube-scheduler", flags)
