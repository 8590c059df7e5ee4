"""An API server prepared for the operator: CRDs, the chart's rules, an account, nodes; and jobs to run there."""

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import yaml
from fake_deployments import FakeDeployments
from fake_gang import FakeNodes

from conftest_apiserver import ApiServerProcess, establish
from trireme.resources import kind_named
from trireme.resources.status import JobStatus
from trireme_operator.apply.api import Api, load_configuration
from trireme_operator.config import OperatorConfig
from trireme_operator.main import Operator

ROOT = Path(__file__).parents[3]
RULES = yaml.safe_load((ROOT / "charts/trireme/files/operator-rules.yaml").read_text())
ACCOUNT, NAMESPACE = "trireme-operator", "trireme-system"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
JOBS = "/apis/trireme.dev/v1alpha1/namespaces/default/pretrainjobs"
Json = dict[str, Any]


def _post(server: ApiServerProcess, path: str, body: Json) -> None:
    answer = server.request("POST", path, body)
    assert answer.status in (200, 201, 409), answer.raw


def install(server: ApiServerProcess) -> None:
    """CRDs, namespace, account and bindings; rules follow by `grant`."""
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        establish(server, yaml.safe_load(path.read_text()))
    _post(server, "/api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": NAMESPACE}})
    account = {"kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}
    _post(server, f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", account)
    subjects = [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}]

    def binding(kind: str) -> Json:
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": ACCOUNT}
        return {"kind": f"{kind}Binding", "metadata": {"name": ACCOUNT}, "roleRef": role, "subjects": subjects}

    _post(server, f"{RBAC}/clusterrolebindings", binding("ClusterRole"))
    _post(server, f"{RBAC}/namespaces/{NAMESPACE}/rolebindings", binding("Role"))
    grant(server, RULES)


def grant(server: ApiServerProcess, rules: Json) -> None:
    """Let the operator's account do what `rules` (in the chart's form) say, and nothing else."""
    cluster = [*rules["namespaced"], *rules["nodes"]]
    for path, role_rules, kind in (
        (f"{RBAC}/clusterroles/{ACCOUNT}", cluster, "ClusterRole"),
        (f"{RBAC}/namespaces/{NAMESPACE}/roles/{ACCOUNT}", rules["leaderElection"], "Role"),
    ):
        body = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": ACCOUNT},
            "rules": role_rules,
        }
        query = "?fieldManager=test&force=true"
        answer = server.request("PATCH", path + query, body, content_type="application/apply-patch+yaml")
        assert answer.status in (200, 201), answer.raw


def without(section: str, index: int, resource: str, verb: str) -> Json:
    """The rules less one verb on one resource."""
    rules = copy.deepcopy(RULES)
    rule = rules[section].pop(index)
    others = [r for r in rule["resources"] if r != resource]
    verbs = [v for v in rule["verbs"] if v != verb]
    rules[section] += [{**rule, "resources": others}] if others else []
    rules[section] += [{**rule, "resources": [resource], "verbs": verbs}] if verbs else []
    return rules  # type: ignore[no-any-return]


def kubeconfig(server: ApiServerProcess, path: Path) -> Path:
    """A kubeconfig of the operator's account."""
    token_path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token"
    request = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"expirationSeconds": 7200}}
    token = server.request("POST", token_path, request).body["status"]["token"]
    config = yaml.safe_load(server.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(config))
    return path


def arguments(config: Path, key: Path, identity: str) -> list[str]:
    """The operator's command line for tests: short times."""
    return [
        *("--kubeconfig", str(config)),
        *("--key-file", str(key)),
        *("--http-host", "127.0.0.1"),
        *("--http-port", "0"),
        *("--lease-namespace", NAMESPACE),
        *("--identity", identity),
        *("--lease-seconds", "3", "--renew-deadline-seconds", "2", "--retry-seconds", "0.3"),
        *("--poll-seconds", "0.2", "--poll-timeout-seconds", "1"),
        *("--resync-seconds", "5"),
    ]


def parsed(config: Path, key: Path, identity: str, *more: str) -> OperatorConfig:
    """The same as settings."""
    return OperatorConfig.parse([*arguments(config, key, identity), *more], environ={})


def job(name: str, nodes: int, cpu: str = "1", **spec: Any) -> Json:
    """A job small enough for any node; with cpu 3 a node has room for one pod."""
    timeouts = {"fenceSeconds": 5, "contactTimeoutSeconds": 2, "drainSeconds": 5}
    return {
        "apiVersion": "trireme.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"preset": "tinyllama-1.1b"},
            "data": {"sources": [{"uri": "s3://bucket/text"}], "sequenceLength": 128},
            "training": {"steps": 30, "globalBatchSize": 2, "precision": "fp32"},
            "workers": {
                "nodes": nodes,
                "devicesPerNode": 1,
                "accelerator": {"kind": "cpu"},
                "resources": {"requests": {"cpu": cpu}},
            },
            "checkpoint": {"uri": "s3://bucket/x"},
            "faultTolerance": {"timeouts": timeouts},
            **spec,
        },
    }


def finetune_job(name: str, **spec: Any) -> Json:
    """A FineTuneJob of one pod."""
    like = job(name, 1)["spec"]
    shared = {key: like[key] for key in ("workers", "checkpoint", "faultTolerance")}
    own = {
        "base": {"uri": "s3://bucket/base"},
        "task": "instruction",
        "data": {"sources": [{"uri": "s3://bucket/examples"}]},
        "training": {"globalBatchSize": 2},
    }
    return {
        "apiVersion": "trireme.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {**shared, **own, **spec},
    }


def rlhf_job(name: str, **spec: Any) -> Json:
    """An RLHFJob of one pod."""
    like = job(name, 1)["spec"]
    shared = {key: like[key] for key in ("workers", "checkpoint", "faultTolerance")}
    own = {
        "algorithm": "dpo",
        "policy": {"uri": "s3://bucket/policy"},
        "data": {"sources": [{"uri": "s3://bucket/comparisons"}]},
        "training": {"globalBatchSize": 2},
    }
    return {
        "apiVersion": "trireme.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": name},
        "spec": {**shared, **own, **spec},
    }


def service(name: str, **spec: Any) -> Json:
    """An InferenceService of one pod."""
    return {
        "apiVersion": "trireme.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "s3://bucket/model"},
            "task": "completion",
            "adapterLimits": {"count": 2},
            "pods": {"accelerator": {"kind": "cpu"}},
            **spec,
        },
    }


def jobs_path(manifest: Json) -> str:
    """URL path of the jobs of a manifest's kind."""
    return f"/apis/trireme.dev/v1alpha1/namespaces/default/{kind_named(manifest['kind']).plural}"


def create_job(server: ApiServerProcess, manifest: Json) -> Json:
    """Create a job as a user does."""
    answer = server.request("POST", jobs_path(manifest), manifest)
    assert answer.status == 201, answer.raw
    body: Json = answer.body
    return body


def status_of(server: ApiServerProcess, name: str) -> JobStatus | None:
    """A job's status; None when the job is gone."""
    answer = server.request("GET", f"{JOBS}/{name}")
    return JobStatus.model_validate(answer.body.get("status") or {}) if answer.status == 200 else None


async def until(what: str, look: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until `look` answers something true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = await asyncio.to_thread(look)
        if value:
            return value
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s: {what}; last was {value!r}")


@contextlib.asynccontextmanager
async def running(server: ApiServerProcess, directory: Path, *more: str) -> AsyncIterator[None]:
    """An operator in this process, under its own account."""
    config = parsed(kubeconfig(server, directory / "kubeconfig"), directory / "key", "test", *more)
    api = Api(await load_configuration(config.kubeconfig))
    stop = asyncio.Event()
    task = asyncio.create_task(Operator(config, api, config.read_keys()).run(stop))
    try:
        yield
    finally:
        stop.set()
        with contextlib.suppress(Exception):
            await task
        await api.close()


@contextlib.asynccontextmanager
async def kubelets(server: ApiServerProcess, names: tuple[str, ...], subnet: int) -> AsyncIterator[FakeNodes]:
    """Nodes of these names whose pods answer on 127.<subnet>.0.x."""
    nodes = FakeNodes(server.request, names, subnet)
    await nodes.create_nodes()
    tasks = [asyncio.create_task(nodes.run("default")), asyncio.create_task(FakeDeployments(nodes).run())]
    try:
        yield nodes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pod in server.request("GET", "/api/v1/namespaces/default/pods").body["items"]:
            name = pod["metadata"]["name"]
            server.request("DELETE", f"/api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 0})
