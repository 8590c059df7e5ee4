"""A whole cluster on this computer: started, looked at, hurt, healed and taken down."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import yaml

from trireme_local import daemons, isolation, partition, processes, s3
from trireme_local import network as net
from trireme_local.control_plane import IMPATIENT, missing_binaries
from trireme_local.errors import ClusterError
from trireme_local.processes import ProcessRecord
from trireme_local.sessions import (
    marked_processes,
    node_marker,
    remove_temporary,
    send_all,
    session_processes,
)
from trireme_local.state import ClusterState, NodeState

if TYPE_CHECKING:
    from trireme_local.api import ClusterApi

KillMode = Literal["kill", "freeze", "partition"]
START_TIMEOUT_SECONDS = 90.0
# Jobs that run without an accelerator ask for this resource, one per rank.
DEFAULT_CAPACITY = {"trireme.dev/cpu-rank": "4"}
SIGNAL_ROUNDS = 40


class LocalCluster:
    """The cluster in one directory. Every method that changes it holds the directory's lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._api_cache: ClusterApi | None = None

    @property
    def kubeconfig(self) -> Path:
        """The file that kubectl uses."""
        return self.directory / "kubeconfig"

    @property
    def logs(self) -> Path:
        """Directory of the daemons' logs."""
        return self.directory / "logs"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as lock:
            flock(lock, LOCK_EX)
            yield

    def state(self) -> ClusterState:
        """What was started here. Raises `ClusterError` when nothing was."""
        state = ClusterState.load(self.directory)
        if state is None:
            raise ClusterError(f"no cluster in {self.directory}: run `trireme local up --dir {self.directory}`")
        return state

    # -- up -------------------------------------------------------------------------------------------------

    def up(
        self,
        *,
        nodes: int,
        name: str | None = None,
        capacity: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        grace_seconds: float | None = None,
        image_table: Path | None = None,
        control_plane: Path | None = None,
        isolate: bool | None = None,
        say: Callable[[str], None] = print,
    ) -> ClusterState:
        """Start what is not running yet and wait until every node is Ready. Raises `ClusterError`.

        With `control_plane`, a directory of Kubernetes' own binaries, these run in place of the local API server.
        With `isolate` the containers of every pod get file systems of their own, of none where it is False; else those
        of pods that ask for a read-only root, where this computer can make them.
        What is not given is as it was, or the default; a cluster that exists cannot become another one.
        """
        if not 1 <= nodes <= 200:
            raise ClusterError(f"--nodes {nodes}: between 1 and 200")
        self._api_cache = None
        with self._locked():
            state = ClusterState.load(self.directory)
            if state is None:
                isolation.check(isolate, say)
                state = self._new_state(name, grace_seconds, control_plane, isolate)
            _refuse_changes(state, name, grace_seconds, control_plane, isolate, capacity, labels)
            like = next(iter(state.nodes.values()), NodeState(number=0, capacity=dict(DEFAULT_CAPACITY)))
            for number in range(1, nodes + 1):
                node = f"node-{number}"
                if node not in state.nodes:
                    wanted = (capacity or like.capacity, labels or like.labels)
                    state.nodes[node] = self._new_node(state, number, *wanted, image_table)
            state.save(self.directory)
            started = self._start_daemons(state)
            if not started:
                say(f"cluster {state.name!r} is already running")
            self._wait_ready(state)
            return state

    def _new_state(
        self, name: str | None, grace_seconds: float | None, control_plane: Path | None, isolate: bool | None
    ) -> ClusterState:
        if control_plane is not None and (missing := missing_binaries(control_plane)):
            raise ClusterError(f"no control plane can be started: {missing}")
        network = net.claim_network(self.directory)
        return ClusterState(
            name=name or "trireme-local",
            network=network,
            grace_seconds=8.0 if grace_seconds is None else grace_seconds,
            control_plane=str(control_plane.resolve()) if control_plane else None,
            isolate=isolate,
            store=s3.StoreAccess(
                endpoint=f"http://{net.s3_address(network)}:{net.S3_PORT}",
                access_key=f"local{secrets.token_hex(6)}",
                secret_key=secrets.token_hex(20),
            ),
        )

    def _new_node(
        self,
        state: ClusterState,
        number: int,
        capacity: dict[str, str],
        labels: dict[str, str],
        image_table: Path | None,
    ) -> NodeState:
        gid = net.node_gid(state.network, number)
        usable = partition.missing_requirements() is None and partition.can_set_gid(gid)
        return NodeState(
            number=number,
            capacity=capacity,
            labels=labels,
            gid=gid if usable else None,
            image_table=str(image_table.resolve()) if image_table else None,
        )

    def _start_daemons(self, state: ClusterState) -> bool:
        """Start each daemon that is not running, etcd and the API server first; True when any was started."""
        started = False
        state.daemons = {name: record for name, record in state.daemons.items() if record.find() is not None}
        for daemon, (command, extra) in daemons.commands(self.directory, state).items():
            if daemon not in state.daemons:
                if daemon in IMPATIENT:
                    self._wait(state.daemons, lambda: self._api_problem(state))
                state.daemons[daemon] = self._start(daemon, command, extra)
                state.save(self.directory)
                started = True
        for node in state.nodes:
            started |= self._start_node(state, node)
        return started

    def _start(self, name: str, command: list[str], extra: dict[str, str]) -> ProcessRecord:
        return processes.start(command, self.logs / f"{name}.log", {**os.environ, **extra})

    def _start_node(self, state: ClusterState, node: str) -> bool:
        entry = state.nodes[node]
        if entry.process is not None and entry.process.find() is not None:
            return False
        command = daemons.node_command(self.directory, self._node_directory(node), state, node)
        entry.process = self._start(node, command, {})
        state.save(self.directory)
        return True

    @property
    def _admin_kubeconfig(self) -> Path:
        return daemons.admin_kubeconfig(self.directory)

    def _node_directory(self, node: str) -> Path:
        return self.directory / "nodes" / node

    # -- waiting --------------------------------------------------------------------------------------------

    def _wait_ready(self, state: ClusterState) -> None:
        nodes = {node: entry.process for node, entry in state.nodes.items() if entry.process}
        self._wait({**state.daemons, **nodes}, lambda: self._problem(state))

    def _wait(self, records: dict[str, ProcessRecord], problem: Callable[[], str]) -> None:
        """Wait until `problem` says "". Raises `ClusterError` when it does not, or when one of the processes dies."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            processes.check_alive(records, self.logs)
            if not (last := problem()):
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"not ready after {START_TIMEOUT_SECONDS:g} s: {last}; see {self.logs}")
            time.sleep(0.3)

    def _api_problem(self, state: ClusterState) -> str:
        if not self._admin_kubeconfig.exists():
            return "the API server has not written its kubeconfig"
        self._write_kubeconfig(state)
        return "" if self._api().is_ready() else "the API server is not ready"

    def _problem(self, state: ClusterState) -> str:
        if problem := self._api_problem(state):
            return problem
        try:
            ready = self.node_readiness()
            s3.check_answers(state.store)
        except (s3.StoreUnavailable, ClusterError) as error:
            return str(error)
        if not self._api().has_default_account():
            return "no controller has made the default service account"
        unready = [node for node in state.nodes if ready.get(node) != "True"]
        return f"nodes not ready: {unready}" if unready else ""

    def _write_kubeconfig(self, state: ClusterState) -> None:
        """The admin kubeconfig with the cluster's name as its context."""
        content = yaml.safe_load(self._admin_kubeconfig.read_text())
        content["clusters"][0]["name"] = content["contexts"][0]["name"] = state.name
        content["contexts"][0]["context"]["cluster"] = content["current-context"] = state.name
        text = yaml.safe_dump(content, sort_keys=False)
        if not self.kubeconfig.exists() or self.kubeconfig.read_text() != text:
            self.kubeconfig.touch(mode=0o600)
            self.kubeconfig.write_text(text)

    def write_secret(self, name: str, entries: dict[str, str], namespace: str = "default") -> None:
        """Create or replace a Secret. Raises `ClusterError`."""
        self._api().write_secret(namespace, name, entries)

    def node_readiness(self) -> dict[str, str]:
        """Node -> status of its Ready condition. Raises `ClusterError` when the API server does not answer."""
        return self._api().node_readiness()

    def _api(self) -> ClusterApi:
        # Imported late: the official client takes a second, and kill-node does without it.
        from trireme_local.api import ClusterApi

        if self._api_cache is None:
            self._api_cache = ClusterApi(self.kubeconfig)
        return self._api_cache

    # -- nodes ----------------------------------------------------------------------------------------------

    def _node(self, state: ClusterState, node: str) -> NodeState:
        if node not in state.nodes:
            raise ClusterError(f"no node {node!r}; the nodes are {sorted(state.nodes)}")
        return state.nodes[node]

    def node_processes(self, state: ClusterState, node: str) -> list[psutil.Process]:
        """Every live process of the node: its session, and what a pod moved out of it."""
        entry = state.nodes[node]
        found = {process.pid: process for process in marked_processes(f"{self._marker(node)}/")}
        if entry.process is not None:
            found |= {process.pid: process for process in session_processes(entry.process.pid)}
        return list(found.values())

    def _marker(self, node: str) -> str:
        return node_marker(self._node_directory(node), node)

    def kill_node(self, node: str, mode: KillMode = "kill") -> int:
        """SIGKILL or SIGSTOP every process of the node, or cut its network; the number of processes hit.

        The API server is told nothing. Raises `ClusterError`, `partition.PartitionUnavailable`.
        """
        with self._locked():
            state = self.state()
            entry = self._node(state, node)
            if mode == "partition":
                if entry.gid is None:
                    needed = partition.missing_requirements() or "CAP_SETGID, when the cluster is started"
                    raise partition.PartitionUnavailable(f"partition needs {needed}")
                subnet = net.node_network(state.network, entry.number)
                members = self.node_processes(state, node)
                partition.cut(state.network, node, entry.gid, subnet, members)
                return len(members)
            return self._signal_node(state, node, signal.SIGKILL if mode == "kill" else signal.SIGSTOP)

    def _signal_node(self, state: ClusterState, node: str, number: signal.Signals) -> int:
        """Signal the node's processes, the node itself first, until all are gone or stopped."""
        entry = state.nodes[node]
        hit: set[int] = set()
        if entry.process is not None and (leader := entry.process.find()) is not None:
            send_all([leader], number)
            hit.add(leader.pid)
        for _ in range(SIGNAL_ROUNDS):
            left = [
                process
                for process in self.node_processes(state, node)
                if number == signal.SIGKILL or _status(process) != psutil.STATUS_STOPPED
            ]
            if not left:
                return len(hit)
            send_all(left, number)
            hit |= {process.pid for process in left}
            time.sleep(0.05)
        raise ClusterError(f"{node}: processes {[process.pid for process in left]} survive {number.name}")

    def revive_node(self, node: str) -> str:
        """Undo `kill_node`: thaw, reconnect, or start the node again. Returns what was done."""
        with self._locked():
            state = self.state()
            self._node(state, node)
            done = []
            if partition.mend(state.network, node):
                done.append("reconnected")
            stopped = [item for item in self.node_processes(state, node) if _status(item) == psutil.STATUS_STOPPED]
            if stopped:
                send_all(stopped, signal.SIGCONT)
                done.append(f"thawed {len(stopped)} processes")
            if self._start_node(state, node):
                done.append("started")
            return ", ".join(done) or "is running"

    # -- down -----------------------------------------------------------------------------------------------

    def down(self, *, keep: bool = False) -> None:
        """Stop every process; unless `keep`, remove the cluster's objects, pods and stored data, logs excepted."""
        if not self.directory.exists():
            return
        with self._locked():
            state = ClusterState.load(self.directory)
            if state is not None:
                self._stop_everything(state)
            if keep and state is not None:
                # The kept certificates and addresses are of this network: it stays claimed.
                return
            net.release_network(self.directory)
            for path in self.directory.iterdir():
                if path.name in ("logs", ".lock"):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _stop_everything(self, state: ClusterState) -> None:
        for node in state.nodes:
            self._signal_node(state, node, signal.SIGKILL)
            remove_temporary(self._node_directory(node), node)
            state.nodes[node].process = None
        processes.terminate(list(state.daemons.values()))
        state.daemons = {}
        partition.mend_all(state.network)
        state.save(self.directory)

    def status(self) -> dict[str, str]:
        """Daemon or node -> one line about it. Raises `ClusterError` when there is no cluster."""
        state = self.state()
        lines = {}
        for name, record in state.daemons.items():
            process = record.find()
            lines[name] = f"running, pid {process.pid}" if process else "dead"
        try:
            ready = self.node_readiness()
        except ClusterError as error:
            ready = {}
            lines["api"] = str(error)
        for node, entry in state.nodes.items():
            process = entry.process.find() if entry.process else None
            if process is None:
                text = "dead"
            elif _status(process) == psutil.STATUS_STOPPED:
                text = f"frozen, pid {process.pid}"
            else:
                text = f"running, pid {process.pid}"
            lines[node] = f"{text}, Ready={ready.get(node, 'unregistered')}"
        return lines


def _refuse_changes(
    state: ClusterState,
    name: str | None,
    grace_seconds: float | None,
    control_plane: Path | None,
    isolate: bool | None,
    capacity: dict[str, str] | None,
    labels: dict[str, str] | None,
) -> None:
    """Raise `ClusterError` where `up` asks an existing cluster to be another one; None asks for nothing."""
    wanted: list[tuple[str, object, object]] = [
        ("--name", state.name, name),
        ("--node-grace-seconds", state.grace_seconds, grace_seconds),
        ("--control-plane", state.control_plane, str(control_plane.resolve()) if control_plane else None),
        ("isolation", isolation.named(state.isolate), None if isolate is None else isolation.named(isolate)),
    ]
    for node, entry in state.nodes.items():
        wanted += [(f"--capacity of {node}", entry.capacity, capacity), (f"--labels of {node}", entry.labels, labels)]
    for option, is_now, asked in wanted:
        if asked is not None and is_now != asked:
            raise ClusterError(f"{option} is {is_now!r} and cannot become {asked!r}: take the cluster down first")


def _status(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.status())
    return str(psutil.STATUS_DEAD)
