"""`trireme top` shows every kind in one table, and asks the API server for each kind once."""

import io
from typing import Any, cast

import pytest
from fake_installation import NOW, FakeCluster, refused_job, resource, running_job, service
from rich.console import Console
from typer.testing import CliRunner

from trireme_cli import overview as overview_module
from trireme_cli import top
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.main import app
from trireme_cli.overview import Overview, read_overview, row_of, seconds_until


def look(cluster: FakeCluster, namespace: str | None = "default") -> Overview:
    return read_overview(cast(Cluster, cluster), namespace)


def printed(found: Overview, width: int = 200, namespace: str | None = "default") -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(top.render(found, namespace, NOW, width))
    return console.export_text().splitlines()


def test_a_job_and_a_service_are_rows_with_what_their_status_says() -> None:
    lines = printed(look(FakeCluster(running_job(), service())))
    header, job, served = [line for line in lines if line.strip()][1:]
    assert header.split() == [
        "KIND", "NAME", "STATE", "STEP", "LOSS", "TOKENS/S", "MFU", "GOODPUT", "RESTARTS", "CKPT-AGE", "DEVICES", "AGE",
    ]  # fmt: skip
    # Productive: 700 s and the 100 s since, of 1000 s.
    cells = "ptj llama Running 9/100 2.5 15k 30.0% 80.0% 1 1m15s 8 16m40s"
    assert job.split() == cells.split()
    assert served.split() == ["tis", "chat", "Ready", "1/2", "ready", "3", "4", "16m40s"]
    assert "1 running, 1 replicas ready, 12 devices held, 15k tokens/s" in lines[0]


def test_a_narrow_terminal_shows_the_columns_that_matter_most_whole() -> None:
    lines = printed(look(FakeCluster(running_job("a-name-of-thirty-characters-ok"))), width=80)
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert "a-name-of-thirty-characters-ok" in "\n".join(lines)
    assert "9/100" in "\n".join(lines)
    assert "DEVICES" not in "\n".join(lines)


def test_rates_of_a_job_that_does_not_run_are_not_shown_as_if_it_did() -> None:
    job = running_job()
    job["status"] |= {"state": "Restarting"}
    row = row_of(look(FakeCluster(job)).entries[0], NOW)
    assert (row.tokens_per_second, row.mfu, row.loss) == (None, None, 2.5)


def test_one_list_per_kind_and_reading() -> None:
    cluster = FakeCluster(running_job(), running_job("other", "team"), service())
    assert [entry.name for entry in look(cluster).entries] == ["llama", "chat"]
    assert len(cluster.asked) == 4
    assert [entry.name for entry in look(cluster, None).entries] == ["llama", "other", "chat"]
    assert len(cluster.asked) == 8


def test_long_lists_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview_module, "PAGE_OBJECTS", 2)
    names = [f"job-{number}" for number in range(5)]
    found = look(FakeCluster(*(running_job(name) for name in names)))
    assert [entry.name for entry in found.entries] == names


def test_a_kind_that_may_not_be_listed_is_named_beside_the_others() -> None:
    cluster = FakeCluster(running_job())
    cluster.refused = {
        "rlhfjobs": ClusterError(403, "no access", "Forbidden"),
        "finetunejobs": ClusterError(404, "page not found"),
    }
    text = "\n".join(printed(look(cluster)))
    assert "llama" in text
    assert "rlhfjobs: no access" in text
    assert "the cluster has no finetunejobs.trireme.dev" in text


def test_a_cluster_without_trireme_is_an_error() -> None:
    cluster = FakeCluster()
    cluster.refused = {f"{kind}s": ClusterError(404, "") for kind in ("pretrainjob", "finetunejob", "rlhfjob")}
    cluster.refused["inferenceservices"] = ClusterError(404, "")
    with pytest.raises(ClusterError, match="run `trireme install`"):
        look(cluster)


def test_a_status_of_a_newer_version_is_a_line_and_not_the_end() -> None:
    found = look(FakeCluster(running_job(), resource("PretrainJob", "newer", {}, state="Teleporting")))
    assert [entry.name for entry in found.entries] == ["llama"]
    assert found.problems == ("PretrainJob/newer: 1 fields of its status are of another version",)


def test_a_job_that_was_refused_says_why() -> None:
    row = row_of(look(FakeCluster(refused_job())).entries[0], NOW)
    assert (row.state, row.reason) == ("Rejected", "DoesNotFit")


def test_the_open_interval_counts_up_to_now() -> None:
    entry = look(FakeCluster(running_job())).entries[0]
    seconds = seconds_until(cast(Any, entry.status).time, NOW)
    assert (seconds["productive"], seconds["down"]) == (800.0, 200.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m"), (205, "3m25s"), (18720, "5h12m"), (356400, "4d3h")]
)
def test_durations_are_of_two_units(seconds: float, text: str) -> None:
    assert top.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(None, ""), (950.2, "950"), (12345, "12.3k"), (4.56e6, "4.56M")])
def test_large_numbers_are_short(value: float | None, text: str) -> None:
    assert top.compact(value) == text


def test_into_a_pipe_it_prints_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "Cluster", lambda _: FakeCluster(running_job()))
    result = CliRunner().invoke(app, ["top"])
    assert result.exit_code == 0
    assert result.stdout.count("trireme top") == 1
    assert "llama" in result.stdout
    empty = CliRunner().invoke(app, ["top", "--once", "--namespace", "nowhere"])
    assert "No jobs and no services in namespace nowhere." in empty.stdout
