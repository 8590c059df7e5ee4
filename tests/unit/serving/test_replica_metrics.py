"""One scrape of a serving pod has the replica's own facts and vLLM's, all of them with the service's name."""

import aiohttp
from model_files import config

from trireme.metrics import exposition
from trireme.protocol.serving import LoadedAdapter, RefusedAdapter, ReplicaReport, ReplicaState, ServiceIdentity
from trireme_serving import metrics, server
from trireme_serving.errors import EngineRefused

SERVICE = ServiceIdentity(namespace="team", name="llama", uid="u")
OF = 'namespace="team",service_name="llama"'
ENGINE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 3.0
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="llama"} 7.0
# HELP process_resident_memory_bytes Resident memory size in bytes.
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1e9
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="llama"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="llama"} 5.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="llama"} 5.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="llama"} 0.9
"""


def report() -> ReplicaReport:
    loaded = LoadedAdapter(name="fr", id="1", uri="s3://b/fr")
    refused = RefusedAdapter(name="de", uri="s3://b/de", reason="RankTooHigh", message="rank 64 of 16")
    return ReplicaReport(service_uid="u", revision="r1", state=ReplicaState.READY, adapters=[loaded], refused=[refused])


def series(text: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def collected(engine: str | None) -> dict[str, float]:
    return series(exposition(metrics.collect(SERVICE, report(), True, {"load": 12.5}, engine)).decode())


def test_a_replica_tells_of_itself() -> None:
    found = collected(None)
    assert found == {
        'trireme_replica_info{namespace="team",revision="r1",service_name="llama"}': 1,
        f'trireme_replica_state{{{OF},state="Ready"}}': 1,
        f"trireme_replica_ready{{{OF}}}": 1,
        f'trireme_replica_start_seconds{{{OF},stage="load"}}': 12.5,
        f"trireme_replica_adapters_loaded{{{OF}}}": 1,
        f"trireme_replica_adapters_refused{{{OF}}}": 1,
        f"trireme_replica_engine_scraped{{{OF}}}": 0,
    }
    assert {name.partition("{")[0] for name in found} == {m.name for group in metrics.GROUPS for m in group.metrics}


def test_vllms_metrics_pass_with_the_services_labels_and_its_processs_do_not() -> None:
    found = collected(ENGINE)
    assert found[f"trireme_replica_engine_scraped{{{OF}}}"] == 1
    own = f'engine="0",model_name="llama",{OF}'
    assert found[f"vllm:num_requests_running{{{own}}}"] == 3
    assert found[f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="llama",{OF}}}'] == 7
    assert found[f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.1",model_name="llama",{OF}}}'] == 4
    assert found[f"vllm:time_to_first_token_seconds_count{{{own}}}"] == 5
    assert not [name for name in found if name.startswith("process_")]


class Replica:
    """What the server asks."""

    started = ready = alive = True
    stage_seconds: dict[str, float] = {}  # noqa: RUF012
    answer: str | None = None

    def report(self) -> ReplicaReport:
        return report()

    async def engine_metrics(self) -> str:
        if self.answer is None:
            raise EngineRefused("not started")
        return self.answer


async def test_metrics_have_a_port_of_their_own_and_are_told_without_an_engine_too() -> None:
    replica, address = Replica(), "127.77.77.77"
    told = config("/models/llama").model_copy(update={"metrics_port": 19464, "status_port": 18081})
    runners = await server.serve(replica, told, address)
    try:
        async with aiohttp.ClientSession(trust_env=False) as session:

            async def get(port: int, path: str) -> tuple[int, str]:
                async with session.get(f"http://{address}:{port}{path}") as answer:
                    return answer.status, await answer.text()

            status, text = await get(19464, "/metrics")
            assert status == 200
            assert [value for name, value in series(text).items() if "engine_scraped" in name] == [0]
            replica.answer = ENGINE
            assert "vllm:num_requests_running{" in (await get(19464, "/metrics"))[1]
            assert (await get(18081, "/metrics"))[0] == 404, "whoever scrapes need not reach the report"
            assert (await get(19464, "/v1/report"))[0] == 404
            assert (await get(18081, "/ready"))[0] == 200
    finally:
        for runner in runners:
            await runner.cleanup()
