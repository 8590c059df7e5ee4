"""The agent's doors: who may come in, and what is too old to be heard."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

from gang_harness import Gang, wait_for

from trireme.protocol import AgentState, Phase


def test_an_agent_answers_its_token_alone_and_never_goes_back(make_gang: Callable[..., Gang]) -> None:
    gang = make_gang(workers__nodes=1, training__steps=5)
    agent = gang.start(0)
    gang.attempt = 3
    hold = gang.target(Phase.HOLD)

    for path, method in (("/v1/report", "GET"), ("/v1/peer", "GET"), ("/v1/target", "PUT"), ("/v1/shards", "POST")):
        assert agent.call(method, path, hold.to_json(), token="wrong")[0] == 401
    assert agent.call("GET", "/healthz", token="")[0] == 200

    report = agent.report()
    assert (report.attempt, report.phase, report.state) == (0, None, AgentState.IDLE)
    assert agent.put(hold).attempt == 3
    status, text = agent.call("PUT", "/v1/target", hold.model_copy(update={"attempt": 2}).to_json())
    assert (status, json.loads(text)["reason"]) == (409, "Stale")
    assert agent.call("PUT", "/v1/target", hold.model_copy(update={"job_uid": "other"}).to_json())[0] == 409
    assert agent.call("PUT", "/v1/target", hold.model_copy(update={"protocol": "2.0"}).to_json())[0] == 426
    assert agent.call("PUT", "/v1/target", hold.model_copy(update={"protocol": "1.9"}).to_json())[0] == 200
    assert agent.call("PUT", "/v1/target", "no json")[0] == 400
    assert agent.call("PUT", "/v1/target", '{"protocol": "1.0"}')[0] == 400
    shards = {"jobUid": gang.config.job.uid, "attempt": 2, "step": 1, "slot": 1, "files": []}
    assert agent.call("POST", "/v1/shards", json.dumps(shards))[0] == 409
    assert agent.report().attempt == 3

    prepared = gang.prepare()
    assert agent.call("PUT", "/v1/target", gang.target(Phase.HOLD).to_json())[0] == 409
    gang.run(prepared)
    done = gang.wait_state(AgentState.SUCCEEDED)[0]
    assert set(done.seconds_by_category) == {"startup", "restore", "productive", "recompute", "checkpointStall"}
    with urllib.request.urlopen(f"http://{agent.address}:{agent.metrics_port}/metrics") as response:
        metrics = response.read().decode()
    labels = 'job="job",kind="PretrainJob",namespace="default"'
    for name in (
        "trireme_train_loss", "trireme_train_learning_rate", "trireme_train_grad_norm", "trireme_train_tokens_total",
        "trireme_step_duration_seconds_count", "trireme_train_tflops_per_device", "trireme_checkpoint_stall_seconds",
        "trireme_checkpoint_upload_seconds", "trireme_checkpoint_bytes",
    ):  # fmt: skip
        assert f"{name}{{{labels}}}" in metrics
    assert 'trireme_train_mfu_ratio{basis="measured-cpu"' in metrics
    gang.release()


def test_a_new_attempt_tells_nothing_of_the_old_one_but_that_it_may_be_alive(make_gang: Callable[..., Gang]) -> None:
    gang = make_gang(workers__nodes=1, training__steps=100_000)
    agent = gang.start(0)
    gang.form()
    gang.wait_step(2)
    gang.attempt += 1
    report = agent.put(gang.target(Phase.HOLD))
    assert report.attempt == 2
    assert report.state is AgentState.STOPPING
    assert report.ranks_alive > 0
    assert report.progress is None
    assert report.failure is None
    wait_for(lambda: (r := agent.report()).state is AgentState.IDLE and r.ranks_alive == 0, 30)
