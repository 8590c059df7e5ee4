"""The chart's rules are enough for the operator, and each verb in them is needed."""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
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
    until,
    without,
)

from conftest_apiserver import ApiServerProcess

Json = dict[str, Any]
VERBS = [
    (section, index, resource, verb)
    for section, rules in RULES.items()
    for index, rule in enumerate(rules)
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


def manifest_for(resource: str, name: str) -> Json:
    """A job whose life needs the verbs on a resource."""
    makers = {"finetunejobs": finetune_job, "rlhfjobs": rlhf_job}
    make = makers.get(resource.partition("/")[0], partial(job, nodes=1))
    return make(name, ttlSecondsAfterFinished=0)


async def whole_life(server: ApiServerProcess, nodes: FakeNodes, manifest: Json) -> None:
    """A job whose pod is evicted once, that then succeeds and is deleted when its time to live is over."""
    name = manifest["metadata"]["name"]
    nodes.fail_first.add(f"{name}-0")
    create_job(server, manifest)
    path = f"{jobs_path(manifest)}/{name}"
    await until(f"{name} is gone", lambda: server.request("GET", path).status == 404)


async def test_rules_suffice_and_no_verb_can_be_spared(
    prepared: ApiServerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trireme_operator")
    caplog.set_level(logging.WARNING, "kopf")
    async with kubelets(prepared, ("n1", "n2"), 81) as nodes:
        async with running(prepared, tmp_path):
            for resource in ("pretrainjobs", "finetunejobs", "rlhfjobs"):
                await whole_life(prepared, nodes, manifest_for(resource, f"all-{resource}"))
        assert "forbidden" not in caplog.text.lower(), caplog.text
        spared = []
        for number, (section, index, resource, verb) in enumerate(VERBS):
            caplog.clear()
            grant(prepared, without(section, index, resource, verb))
            refused = f'cannot {verb} resource "{resource}"'

            def seen(refused: str = refused) -> bool:
                return refused in caplog.text

            async with running(prepared, tmp_path):
                manifest = manifest_for(resource, f"less{number}")
                life = asyncio.create_task(whole_life(prepared, nodes, manifest))
                try:
                    await until(f"{refused} is said", seen, 15.0)
                except AssertionError:
                    spared.append((resource, verb))
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)
            prepared.request("DELETE", f"{jobs_path(manifest)}/less{number}")
            prepared.request("DELETE", "/api/v1/namespaces/default/pods")
            prepared.request("DELETE", "/apis/coordination.k8s.io/v1/namespaces/trireme-system/leases/trireme-operator")
        assert not spared, f"these verbs can be spared: {spared}"
