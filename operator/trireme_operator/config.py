"""The operator's settings: flags, each with an environment variable as its default."""

import argparse
import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from trireme.planning.hardware import AcceleratorKind
from trireme.resources.common import Accelerator
from trireme_operator.apply.api import SERVICE_ACCOUNT
from trireme_operator.decide.defaults import EVERY_KIND, PodDefaults

DEFAULT_IMAGE = "ghcr.io/trireme-dev/trireme-trainer:latest"
DEFAULT_SERVING_IMAGE = "ghcr.io/trireme-dev/trireme-serving:latest"


@dataclass(frozen=True)
class OperatorConfig:
    """How one operator process runs."""

    namespaces: tuple[str, ...]  # empty: the whole cluster
    may_lack_nodes: bool  # no permission on what lies in no namespace: not a fault
    kubeconfig: str | None
    service_account: Path  # directory with the token and ca.crt of the pod's account
    trainer_image: str
    serving_image: str
    pod_defaults: PodDefaults
    key_file: Path
    in_cluster: bool  # the process runs in a pod
    http_host: str
    http_port: int
    lease_namespace: str
    lease_name: str
    identity: str
    lease_seconds: float
    renew_deadline_seconds: float
    retry_seconds: float
    poll_seconds: float
    poll_timeout_seconds: float
    poll_concurrency: int
    resync_seconds: float
    workers: int
    exclude_after_failures: int
    log_level: str

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> "OperatorConfig":
        """Settings from the command line. Exits with a usage message when they make no sense."""
        parser = _parser(environ)
        given = parser.parse_args(arguments)
        if not given.lease_seconds > given.renew_deadline_seconds > given.retry_seconds > 0:
            parser.error("lease-seconds > renew-deadline-seconds > retry-seconds > 0 must hold")
        values = vars(given)
        values["namespaces"] = _items(given.namespaces)
        try:
            devices = _device_resources(_items(values.pop("device_resources")))
        except ValueError as error:
            parser.error(f"device-resources: {error}")
        values["pod_defaults"] = PodDefaults(devices, _items(values.pop("image_pull_secrets")))
        values["key_file"] = Path(given.key_file)
        values["service_account"] = Path(given.service_account)
        values["in_cluster"] = "KUBERNETES_SERVICE_HOST" in environ and given.kubeconfig is None
        return cls(**values)

    def read_keys(self) -> tuple[bytes, ...]:
        """The keys that job tokens are derived from, one a line; outside a cluster one is made on the first start.

        The first is for new tokens; those after it are still tried on agents that were started under them.

        In a cluster the file is a mounted Secret, the same for all replicas: one that made a key of its own would
        send tokens that the agents refuse. Raises OSError or ValueError.
        """
        if not self.key_file.exists():
            if self.in_cluster:
                raise FileNotFoundError(
                    f"key file {self.key_file} is missing: mount the Secret with the operators' key"
                )
            self.key_file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.key_file.parent) as file:  # its mode is 0600
                file.write(secrets.token_hex(32).encode())
                file.flush()
                with contextlib.suppress(FileExistsError):  # another replica was faster
                    os.link(file.name, self.key_file)
        lines = [line.strip() for line in self.key_file.read_bytes().split(b"\n")]
        keys = tuple(line for line in lines if line)
        shortest = min(map(len, keys), default=0)
        if shortest < 32:
            raise ValueError(f"key file {self.key_file} has a key of {shortest} bytes, at least 32 are needed")
        return keys


def _truth(text: str) -> bool:
    """Raises ValueError for what is neither true nor false."""
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _device_resources(entries: tuple[str, ...]) -> dict[str, str]:
    """NAME for every kind of accelerator that has devices, KIND=NAME for one. Raises ValueError."""
    found: dict[str, str] = {}
    kinds = get_args(AcceleratorKind)
    for entry in entries:
        kind, name = entry.split("=", 1) if "=" in entry else (EVERY_KIND, entry)
        if kind not in (EVERY_KIND, *kinds):
            raise ValueError(f"{entry!r}: no kind {kind!r}; known: {', '.join(kinds)}")
        if kind in found:
            raise ValueError(f"{entry!r}: {'the name for every kind' if kind == EVERY_KIND else kind} is given twice")
        try:
            Accelerator(kind=kinds[0], resource_name=name)
        except ValidationError:
            raise ValueError(f"{entry!r}: {name!r} is no name of an extended resource, such as amd.com/gpu") from None
        found[kind] = name
    return found


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trireme-operator",
        description="Runs training jobs and inference services on Kubernetes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def add(flag: str, default: object, text: str, kind: type = str) -> None:
        variable = "TRIREME_OPERATOR_" + flag.upper().replace("-", "_")
        value = environ.get(variable)
        chosen = kind(value) if value is not None else default
        parser.add_argument(f"--{flag}", type=kind, default=chosen, help=f"{text} [{variable}]")

    pod_namespace = environ.get("POD_NAMESPACE", "default")
    add("namespaces", "", "comma-separated namespaces to serve; empty: all")
    lacking = "serve the whole cluster without access to nodes and CRDs; with --namespaces that is no fault anyhow"
    variable = "TRIREME_OPERATOR_MAY_LACK_NODES"
    parser.add_argument(
        "--may-lack-nodes",
        type=_truth,
        nargs="?",
        const=True,
        default=_truth(environ.get(variable, "false")),
        help=f"{lacking} [{variable}]",
    )
    add("kubeconfig", None, "kubeconfig to use outside a cluster; KUBECONFIG and the pod's own account otherwise")
    add("service-account", str(SERVICE_ACCOUNT), "directory with the token and ca.crt of the pod's own account")
    add("trainer-image", environ.get("TRIREME_TRAINER_IMAGE", DEFAULT_IMAGE), "image of jobs that name none")
    serving_image = environ.get("TRIREME_SERVING_IMAGE", DEFAULT_SERVING_IMAGE)
    add("serving-image", serving_image, "image of services that name none")
    secrets_text = "comma-separated pull secrets of jobs and services that name none, in their own namespaces"
    add("image-pull-secrets", "", secrets_text)
    devices_text = "extended resource of one device where a spec names none: NAME for every kind, KIND=NAME for one"
    add("device-resources", "", f"comma-separated; {devices_text}")
    add("key-file", "/etc/trireme-operator/key", "file with the keys, one a line, that job tokens are derived from")
    add("http-host", "0.0.0.0", "address of /metrics, /healthz and /readyz")
    add("http-port", 8080, "port of /metrics, /healthz and /readyz; 0 takes any", int)
    add("lease-namespace", pod_namespace, "namespace of the leader's Lease")
    add("lease-name", "trireme-operator", "name of the leader's Lease")
    identity = f"{environ.get('POD_NAME', socket.gethostname())}_{secrets.token_hex(4)}"
    add("identity", identity, "name of this replica in the Lease")
    add("lease-seconds", 15.0, "others take over when the Lease was not renewed for this long", float)
    add("renew-deadline-seconds", 10.0, "a leader that could not renew for this long stops acting", float)
    add("retry-seconds", 2.0, "time between tries to get or renew the Lease", float)
    add("poll-seconds", 1.0, "time between polls of an agent", float)
    add("poll-timeout-seconds", 5.0, "time an agent has to answer", float)
    add("poll-concurrency", 64, "agents polled at the same time", int)
    add("resync-seconds", 30.0, "time between full looks at everything", float)
    add("workers", 4, "jobs handled at the same time", int)
    add("exclude-after-failures", 3, "faults of one job on one node until it keeps off that node", int)
    add("log-level", "INFO", "DEBUG, INFO, WARNING or ERROR")
    return parser
