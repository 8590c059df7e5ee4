"""The chart's rules are enough for the operator, and each verb in them is needed."""

import asyncio
import logging
from pathlib import Path

import pytest
from fake_gang import FakeNodes
from operator_harness import JOBS, RULES, create_job, grant, job, kubelets, running, until, without

from conftest_apiserver import ApiServerProcess

VERBS = [
    (section, index, resource, verb)
    for section, rules in RULES.items()
    for index, rule in enumerate(rules)
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


async def whole_life(server: ApiServerProcess, nodes: FakeNodes, name: str) -> None:
    """A job whose pod is evicted once, that then succeeds and is deleted when its time to live is over."""
    nodes.fail_first.add(f"{name}-0")
    create_job(server, job(name, 1, ttlSecondsAfterFinished=0))
    await until(f"{name} is gone", lambda: server.request("GET", f"{JOBS}/{name}").status == 404)


async def test_rules_suffice_and_no_verb_can_be_spared(
    prepared: ApiServerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trireme_operator")
    caplog.set_level(logging.WARNING, "kopf")
    async with kubelets(prepared, ("n1", "n2"), 81) as nodes:
        async with running(prepared, tmp_path):
            await whole_life(prepared, nodes, "all")
        assert "forbidden" not in caplog.text.lower(), caplog.text
        spared = []
        for number, (section, index, resource, verb) in enumerate(VERBS):
            caplog.clear()
            grant(prepared, without(section, index, resource, verb))
            refused = f'cannot {verb} resource "{resource}"'

            def seen(refused: str = refused) -> bool:
                return refused in caplog.text

            async with running(prepared, tmp_path):
                life = asyncio.create_task(whole_life(prepared, nodes, f"less{number}"))
                try:
                    await until(f"{refused} is said", seen, 15.0)
                except AssertionError:
                    spared.append((resource, verb))
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)
            prepared.request("DELETE", f"{JOBS}/less{number}")
            prepared.request("DELETE", "/api/v1/namespaces/default/pods")
            prepared.request("DELETE", "/apis/coordination.k8s.io/v1/namespaces/trireme-system/leases/trireme-operator")
        assert not spared, f"these verbs can be spared: {spared}"
