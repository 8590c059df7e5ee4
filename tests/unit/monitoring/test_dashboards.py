"""The chart's dashboards ask for series and labels that exist, and are what the code makes."""

import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest

from promql_queries import BASE, FILES, Asked, WrongQuery, dashboards, labels_of, marks, panels, queries, rules
from trireme_monitoring.__main__ import files, write
from trireme_monitoring.promql import UnknownLabel, one, series
from trireme_trainer.metrics import definitions as trainer

BOARDS = dashboards()
ANY = {"instance": ".*", "namespace": ".*", "job": ".*", "kind": ".*", "service": ".*"}


def asked(name: str) -> Iterator[Asked]:
    """All queries of a dashboard."""
    yield from marks(BOARDS[name], name)
    for panel in panels(BOARDS[name]):
        yield from queries(panel, name)


def test_files_are_what_the_code_makes() -> None:
    there = {
        str(p.relative_to(FILES)): p.read_text()
        for folder in ("dashboards", "rules")
        for p in (FILES / folder).iterdir()
    }
    assert there == files(), "run `make dashboards`"


def test_writing_removes_what_is_no_more(tmp_path: Path) -> None:
    for name in ("dashboards/old.json", "rules/old.yaml", "crds/kept.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    write(tmp_path)
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    assert there == {*files(), "crds/kept.yaml"}


@pytest.mark.parametrize("name", BOARDS)
def test_every_series_and_label_is_one_that_some_process_exports(name: str) -> None:
    checked = 0
    for query in asked(name):
        try:
            result = labels_of(promql_parser.parse(query.filled(ANY))) or set()
        except (WrongQuery, ValueError) as error:
            raise AssertionError(f"{query.where}: {query.expr}: {error}") from error
        legend = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        assert legend <= result, f"{query.where}: {query.legend} of {sorted(result)}"
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("name", BOARDS)
def test_dashboards_have_the_same_variables_and_use_them(name: str) -> None:
    variables = {variable["name"]: variable for variable in BOARDS[name]["templating"]["list"]}
    assert {"datasource", "namespace", "job"} <= set(variables)
    for variable in list(variables.values())[1:]:
        query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
        assert query
        filled = Asked(variable["name"], query[1]).filled({**ANY, "job": "x"})
        assert query[2] in (labels_of(promql_parser.parse(filled)) or set())
    texts = [query.expr for query in asked(name)] + [variable["query"] for variable in variables.values()]
    used = {word for text in texts for word in re.findall(r"\$(\w+)", text)} - {"__rate_interval", "__range"}
    assert used == set(variables) - {"datasource"}
    assert {str(panel["datasource"]["uid"]) for panel in panels(BOARDS[name])} == {"${datasource}"}


@pytest.mark.parametrize("name", BOARDS)
def test_panels_say_what_they_show_and_do_not_overlap(name: str) -> None:
    cells: set[tuple[int, int]] = set()
    ids, titles = set(), []
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        covered = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & covered, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= covered
        ids.add(panel["id"])
        titles.append((panel["type"], panel["title"]))
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert len(panel["targets"]) == len({target["refId"] for target in panel["targets"]}) > 0
    assert len(ids) == len(titles)


def test_links_lead_to_dashboards_that_there_are() -> None:
    uids = {board["uid"] for board in BOARDS.values()}
    found = set(re.findall(r"/d/([\w-]+)", "".join(path.read_text() for path in (FILES / "dashboards").iterdir())))
    assert found
    assert found <= uids


def test_a_restart_is_marked_with_its_cause() -> None:
    (mark,) = (m for m in marks(BOARDS["job"], "job") if "Restart" in m.where)
    assert mark.legend == "Restart: {{cause}}"


def test_only_what_another_metric_shows_better_is_in_no_dashboard_and_no_alert() -> None:
    names = {name for text in _texts() for name in re.findall(r"(?:trireme_|vllm:)\w+", text)}
    shown = {BASE[name].name for name in names}
    assert {metric.name for metric in BASE.values()} - shown == {"trireme_job_tokens", "trireme_train_step"}


def _texts() -> Iterator[str]:
    for name in BOARDS:
        yield from (query.expr for query in asked(name))
    yield from (str(rule["expr"]) for rule in rules())


def test_a_query_of_a_label_that_a_metric_lacks_cannot_be_built() -> None:
    with pytest.raises(UnknownLabel, match="trireme_train_loss has no label"):
        series(trainer.LOSS, 'cause="NodeLost"')
    with pytest.raises(UnknownLabel, match="no label part"):
        one(trainer.LOSS, "part")


@pytest.mark.parametrize(
    "query",
    [
        "trireme_train_lost",
        'trireme_train_loss{cause="NodeLost"}',
        "sum by (part) (trireme_train_loss)",
        "sum by (job_name) (trireme_train_loss) / sum by (kind) (trireme_train_loss)",
        "max by (job_name) (trireme_train_loss) and on (kind) max by (job_name) (trireme_train_step)",
        "histogram_quantile(0.5, sum by (kind) (rate(trireme_step_duration_seconds_bucket[5m])))",
        "trireme_step_duration_seconds",
    ],
)
def test_a_query_that_would_find_nothing_is_refused(query: str) -> None:
    with pytest.raises(WrongQuery):
        labels_of(promql_parser.parse(query))
