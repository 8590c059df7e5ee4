"""What a user may change of a job, by the CRD's rules and the status that the operator writes."""

from pathlib import Path
from typing import Any

import pytest
from fake_gang import Training
from operator_harness import JOBS, create_job, job, kubelets, running, status_of, until

from conftest_apiserver import Answer, ApiServerProcess
from trireme.resources.status import ConditionType, JobState

TWO = ("n1", "n2")


def edit(server: ApiServerProcess, name: str, spec: dict[str, Any]) -> Answer:
    return server.request("PATCH", f"{JOBS}/{name}", {"spec": spec}, content_type="application/merge-patch+json")


async def test_a_refused_job_is_cured_by_an_edit_and_then_stays_as_it_was_accepted(
    prepared: ApiServerProcess, tmp_path: Path
) -> None:
    def accepted() -> str:
        status = status_of(prepared, "cured")
        condition = status.condition(ConditionType.ACCEPTED) if status else None
        return condition.status if condition else ""

    async with kubelets(prepared, TWO, 89) as nodes, running(prepared, tmp_path):
        nodes.training["cured"] = Training(total_steps=40)
        create_job(prepared, job("cured", 3, parallelism={"pipeline": 3}))
        await until("a verdict", lambda: accepted() == "False")
        cure = {"workers": {"nodes": 2}, "parallelism": {"pipeline": "auto", "data": 2}}
        answer = edit(prepared, "cured", cure)
        assert answer.status == 200, answer.raw
        await until("accepted", lambda: accepted() == "True")

        for field, change in {
            "workers.nodes": {"workers": {"nodes": 3}},
            "parallelism.data": {"parallelism": {"data": 1}},
            "workers.tolerations": {"workers": {"tolerations": [{"operator": "Exists"}]}},
            "workers.affinity": {"workers": {"affinity": {"nodeAffinity": {}}}},
            "model.preset": {"model": {"preset": "llama3-8b"}},
        }.items():
            refused = edit(prepared, "cured", change)
            assert refused.status == 422
            [cause] = refused.body["details"]["causes"]
            assert cause["field"] == f"spec.{field}"
            assert f"{field} is immutable once the job is accepted" in cause["message"]
        assert edit(prepared, "cured", {"checkpoint": {"keep": 5}, "suspend": False}).status == 200

        await until("the end", lambda: status_of(prepared, "cured").completion_time)  # type: ignore[union-attr]
        status = status_of(prepared, "cured")
        assert status is not None
        assert (status.state, status.restarts.total) == (JobState.SUCCEEDED, 0)


@pytest.fixture(autouse=True)
def _no_job_left(prepared: ApiServerProcess) -> Any:
    yield
    prepared.request("DELETE", f"{JOBS}/cured")
