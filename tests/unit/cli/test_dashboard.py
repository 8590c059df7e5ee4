"""The dashboard's JSON and the doors that it keeps shut."""

import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fake_installation import SECRET, FakeCluster, FakeStore, records, refused_job, resource, running_job, service

from trireme.checkpoints import JobKeys
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.dashboard.curves import LiveCurve, StoredCurve, points_of, split, thin
from trireme_cli.dashboard.facts import Facts
from trireme_cli.dashboard.server import PAGE_FILES, listen, make_app
from trireme_cli.jobs import Job
from trireme_cli.store import JobStore, StoreError

Json = dict[str, Any]
KEYS = JobKeys("s3://bucket/p", "default", "llama", "uid-llama")


def stored() -> FakeStore:
    """Attempt 1 in two objects up to step 6, attempt 2 from the checkpoint of step 4 on, and one step of NaN."""
    objects = {
        KEYS.history(1, 0): records(1, range(1, 5)),
        KEYS.history(1, 1): records(1, range(5, 7)),
        KEYS.history(2, 0): [*records(2, range(5, 8)), *records(2, range(8, 9), loss=float("nan"))],
    }
    return FakeStore(KEYS, objects, KEYS.manifest(1, 4), KEYS.manifest(2, 8), KEYS.step(2, 8) + "shard-0")


def facts_of(*objects: Json, store: Any = None, interval: float = 60.0) -> tuple[Facts, FakeCluster]:
    cluster = FakeCluster(*(objects or (running_job(), refused_job(), service())))

    def open_store(_: Cluster, job: Job) -> JobStore:
        if isinstance(store, Exception):
            raise store
        assert job.name == "llama"
        return cast(JobStore, store or stored())

    return Facts(cast(Cluster, cluster), "default", interval, open_store), cluster


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    async with TestClient(TestServer(make_app(facts_of()[0]), host="127.0.0.1")) as found:
        yield found


def test_the_overview_has_a_row_for_every_object() -> None:
    overview = facts_of()[0].overview()
    rows = {row["name"]: row for row in overview["rows"]}
    assert [(r["plural"], r["state"]) for r in rows.values()] == [
        ("pretrainjobs", "Running"),
        ("finetunejobs", "Rejected"),
        ("inferenceservices", "Ready"),
    ]
    assert (rows["llama"]["step"], rows["llama"]["mfu"], rows["llama"]["devices"]) == (9, 0.3, 8)
    assert rows["refused"]["message"].startswith("needs 90 GiB")
    assert (rows["chat"]["ready"], rows["chat"]["replicas"]) == (1, 2)
    assert rows["chat"]["url"] == "http://10.0.0.9:8000/v1"
    assert overview["problems"] == []


def test_any_number_of_pages_cost_one_list_per_kind_and_interval() -> None:
    facts, cluster = facts_of()
    for _ in range(5):
        facts.overview()
        facts.detail("pretrainjobs", "default", "llama")
    assert len(cluster.asked) == 4


def test_a_jobs_curves_are_those_of_the_store_and_then_of_the_status() -> None:
    job = facts_of()[0].detail("pretrainjobs", "default", "llama")["job"]
    curve, lost = job["curve"], job["lost"]
    assert curve["step"] == list(range(1, 10)), "step 9 is in the status alone"
    assert curve["loss"][:4] == [4.9, 4.8, 4.7, 4.6]
    assert curve["loss"][7:] == [None, 2.5], "NaN is a gap"
    assert curve["tokensPerSecond"][1] == pytest.approx(10000)
    assert curve["mfu"][1] == pytest.approx(0.2), "30% at 15000 tokens per second"
    assert lost["step"] == [5, 6]
    assert [r["cause"] for r in job["restarts"]] == ["NodeLost"]
    assert job["keptCheckpoints"] == [{"step": 4, "attempt": 1}, {"step": 8, "attempt": 2}]
    assert job["seconds"]["down"] == 200.0
    assert job["storeNote"] == ""


def test_without_the_store_the_curves_are_what_the_status_said() -> None:
    facts, cluster = facts_of(running_job(), store=StoreError("s3://bucket/p: no route"), interval=0.0)
    facts.overview()
    cluster.objects[0]["status"]["progress"] |= {"step": 12, "loss": 2.25}
    job = facts.detail("pretrainjobs", "default", "llama")["job"]
    assert (job["curve"]["step"], job["curve"]["loss"]) == ([9, 12], [2.5, 2.25])
    assert job["storeNote"] == "The object store cannot be read: s3://bucket/p: no route"


def test_a_service_shows_its_replicas_and_adapters() -> None:
    found = facts_of()[0].detail("inferenceservices", "default", "chat")
    assert found["service"]["revision"] == "r1"
    assert [[a["name"] for a in pod["adapters"]] for pod in found["service"]["replicas"]] == [["french"]]
    assert found["conditions"][0]["reason"] == "AllReady"


def test_while_the_cluster_does_not_answer_the_last_facts_stay_and_the_page_says_so() -> None:
    facts, cluster = facts_of(interval=0.0)
    before = facts.overview()
    for plural in ("pretrainjobs", "finetunejobs", "rlhfjobs", "inferenceservices"):
        cluster.refused[plural] = ClusterError(503, "gone away")
    after = facts.overview()
    assert [row["name"] for row in after["rows"]] == [row["name"] for row in before["rows"]]
    assert after["asOf"] == before["asOf"]
    assert "the cluster does not answer" in after["problems"][0]


def test_no_spec_no_secret_and_no_traceback_is_in_the_answers() -> None:
    job = running_job()
    job["spec"]["env"] = [{"name": "PASSWORD", "value": SECRET}]
    job["status"]["resolved"]["spec"] = {"env": SECRET}
    job["status"]["failure"] = {"cause": "RankFailed", "message": "boom", "tracebackTail": SECRET}
    served = service()
    served["spec"]["env"] = SECRET
    facts, _ = facts_of(job, served)
    texts = [
        json.dumps(found)
        for found in (
            facts.overview(),
            facts.detail("pretrainjobs", "default", "llama"),
            facts.detail("inferenceservices", "default", "chat"),
        )
    ]
    assert "boom" in texts[1]
    assert not any(SECRET in text or base64.b64encode(SECRET.encode()).decode() in text for text in texts)


def test_stored_objects_that_are_complete_are_read_once() -> None:
    store = stored()
    curve = StoredCurve(cast(JobStore, store))
    assert len(curve.read()) == len(curve.read()) == 10
    assert store.read_keys.count(KEYS.history(1, 0)) == 1
    assert store.read_keys.count(KEYS.history(1, 1)) == 2, "the last object of an attempt may have grown"


def test_a_long_curve_keeps_its_ends_and_its_spikes() -> None:
    found = records(1, range(1, 50_001))
    found[31_415] = found[31_415].model_copy(update={"loss": 99.0})
    thinned = thin(points_of(found), 1000)
    assert len(thinned) <= 1000
    assert (thinned[0].step, thinned[-1].step) == (1, 50_000)
    assert max(p.loss or 0.0 for p in thinned) == 99.0
    assert [p.step for p in thinned] == sorted(p.step for p in thinned)


def test_steps_that_any_newer_attempt_computed_again_are_apart() -> None:
    points = [p for attempt, start in ((1, 1), (2, 6), (3, 4)) for p in points_of(records(attempt, range(start, 9)))]
    kept, lost = split(points)
    assert [(p.attempt, p.step) for p in kept] == [(1, 1), (1, 2), (1, 3), *((3, n) for n in range(4, 9))]
    assert len(lost) == len(points) - len(kept)


def test_a_status_that_has_not_moved_is_one_point() -> None:
    curve, entry = LiveCurve(), facts_of(running_job())[0]
    entry.overview()
    status = Job(cast(Any, None), running_job()).status
    curve.note(status)
    curve.note(status)
    assert [p.step for p in curve.after([])] == [9]


async def test_the_json_is_served(client: Any) -> None:
    overview = await (await client.get("/api/overview")).json()
    assert [row["name"] for row in overview["rows"]] == ["llama", "refused", "chat"]
    detail = await (await client.get("/api/resources/pretrainjobs/default/llama")).json()
    assert detail["job"]["attempt"] == 2
    missing = await client.get("/api/resources/pretrainjobs/default/other")
    assert missing.status == 404
    assert "other" in (await missing.json())["error"]


@pytest.mark.parametrize("host", ["127.0.0.1:8790", "localhost:9000", "[::1]:80", "localhost"])
async def test_requests_for_this_computer_are_answered(client: Any, host: str) -> None:
    assert (await client.get("/api/overview", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8790", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[", ""],
)
@pytest.mark.parametrize("path", ["/", "/api/overview"])
async def test_a_name_that_was_bound_to_this_computer_anew_reads_nothing(client: Any, host: str, path: str) -> None:
    answer = await client.get(path, headers={"Host": host})
    assert answer.status == 421
    assert "llama" not in await answer.text()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_nothing_can_be_written(client: Any, method: str) -> None:
    assert (await client.request(method, "/api/overview")).status == 405


async def test_the_page_is_whole_in_itself_and_in_nobodys_frame(client: Any) -> None:
    for path in PAGE_FILES:
        answer = await client.get(path)
        assert answer.status == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "Access-Control-Allow-Origin" not in answer.headers
        addresses = re.findall(r"https?://[\w.]+", await answer.text())
        assert set(addresses) <= {"http://www.w3.org"}, "a namespace is no request"


async def test_every_file_that_the_page_asks_for_is_served(client: Any) -> None:
    for path in PAGE_FILES:
        text = await (await client.get(path)).text()
        asked = re.findall(r"(?:src|href)=\"(/[\w.]+)\"|from \"\.(/[\w.]+)\"", text)
        assert {a or b for a, b in asked} <= set(PAGE_FILES)


def test_it_listens_on_this_computer_alone() -> None:
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_job_without_a_status_is_drawn_too() -> None:
    facts, _ = facts_of(resource("PretrainJob", "llama", {}), store=StoreError("none"))
    assert facts.detail("pretrainjobs", "default", "llama")["job"]["curve"]["step"] == []


def test_page_files_are_in_the_package() -> None:
    folder = Path(__file__).resolve().parents[3] / "cli" / "trireme_cli" / "dashboard" / "page"
    assert {path.name for path in folder.iterdir()} == {name for name, _ in PAGE_FILES.values()}
