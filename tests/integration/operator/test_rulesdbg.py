"""The chart's rules are enough for the operator, and each verb in them is needed."""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_deployments import BUDGETS, DEPLOYMENTS
from fake_gang import FakeNodes
from operator_harness import (
    RULES,
    create_job,
    finetune_job,
    grant,
    job,
    jobs_path,
    kubelets,
    rlhf_job,
    running,
    service,
    until,
    without,
)

from conftest_apiserver import ApiServerProcess

Json = dict[str, Any]
ALL = [
    (section, index, resource, verb)
    for section, rules in RULES.items()
    for index, rule in enumerate(rules)
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


VERBS = [v for v in ALL if "custom" in v[2]]
OF_SERVICES = {"inferenceservices", "inferenceservices/status", "deployments", "poddisruptionbudgets"}
OF_SERVICES_TOO = {("services", "list"), ("services", "watch"), ("services", "patch"), ("configmaps", "patch")}


def manifest_for(resource: str, verb: str, name: str) -> Json:
    """A job or service whose life needs a verb on a resource."""
    if resource in OF_SERVICES or (resource, verb) in OF_SERVICES_TOO:
        return service(name, replicas=2)
    makers = {"finetunejobs": finetune_job, "rlhfjobs": rlhf_job}
    make = makers.get(resource.partition("/")[0], partial(job, nodes=1))
    return make(name, ttlSecondsAfterFinished=0)


async def whole_life(server: ApiServerProcess, nodes: FakeNodes, manifest: Json) -> None:
    """A job whose pod is evicted once, that then succeeds and is deleted when its time is over; or a service."""
    name = manifest["metadata"]["name"]
    if manifest["kind"] == "InferenceService":
        return await service_life(server, manifest)
    nodes.fail_first.add(f"{name}-0")
    create_job(server, manifest)
    path = f"{jobs_path(manifest)}/{name}"
    await until(f"{name} is gone", lambda: server.request("GET", path).status == 404)


async def service_life(server: ApiServerProcess, manifest: Json) -> None:
    """A service of two replicas that gets an adapter, is scaled to nothing and back, rolls a revision out, and goes."""
    name, path = manifest["metadata"]["name"], f"{jobs_path(manifest)}/{manifest['metadata']['name']}"

    def status() -> Json:
        found: Json = server.request("GET", path).body.get("status") or {}
        return found

    def edit(**spec: Any) -> None:
        answer = server.request("PATCH", path, {"spec": spec}, content_type="application/merge-patch+json")
        assert answer.status == 200, answer.raw

    def settled(revision: str) -> bool:
        found, state = server.request("GET", DEPLOYMENTS).body["items"], status()
        own = [d["metadata"]["name"] for d in found if d["metadata"]["labels"]["trireme.dev/service-name"] == name]
        return len(own) == 1 and state["servingRevision"] != revision and state["readyReplicas"] == 2

    create_job(server, manifest)
    await until(f"{name} is ready", lambda: status().get("readyReplicas") == 2)
    first = status()["servingRevision"]
    edit(adapters=[{"name": "fr", "uri": "s3://bucket/fr"}], replicas=0)
    await until(f"{name} is stopped", lambda: status()["state"] == "Stopped")
    edit(replicas=2)
    await until(f"{name} is ready again", lambda: status().get("readyReplicas") == 2)
    edit(maxConcurrency=8)
    await until(f"{name} has a new revision alone", lambda: settled(first))
    server.request("DELETE", path)


def remove_services(server: ApiServerProcess) -> None:
    """Services and what they own: there is no garbage collector here."""
    server.request("DELETE", jobs_path(service("any")))
    server.request("DELETE", DEPLOYMENTS)
    server.request("DELETE", BUDGETS)


async def test_rules_suffice_and_no_verb_can_be_spared(
    prepared: ApiServerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trireme_operator")
    caplog.set_level(logging.WARNING, "kopf")
    # A node for each pod of a service that rolls out: two that serve, and two that come up.
    async with kubelets(prepared, ("n1", "n2", "n3", "n4"), 81) as nodes:
        async with running(prepared, tmp_path):
            for resource in ():
                await whole_life(prepared, nodes, manifest_for(resource, "list", f"all-{resource}"))
        assert "forbidden" not in caplog.text.lower(), caplog.text
        spared = []
        for number, (section, index, resource, verb) in enumerate(VERBS):
            caplog.clear()
            grant(prepared, without(section, index, resource, verb))
            refused = f'cannot {verb} resource "{resource}"'

            def seen(refused: str = refused) -> bool:
                return refused in caplog.text

            async with running(prepared, tmp_path):
                manifest = manifest_for(resource, verb, f"less{number}")
                life = asyncio.create_task(whole_life(prepared, nodes, manifest))
                try:
                    await until(f"{refused} is said", seen, 15.0)
                except AssertionError:
                    spared.append((resource, verb, refused, refused in caplog.text, len(caplog.text), caplog.text[:1500]))
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)
            prepared.request("DELETE", f"{jobs_path(manifest)}/less{number}")
            remove_services(prepared)
            prepared.request("DELETE", "/api/v1/namespaces/default/pods")
            prepared.request("DELETE", "/apis/coordination.k8s.io/v1/namespaces/trireme-system/leases/trireme-operator")
        assert not spared, f"these verbs can be spared: {spared}"
