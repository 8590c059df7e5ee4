"""Every alert fires when it should, clears when it should and says what to do; its tests notice if it is changed."""

import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import promql_parser
import pytest
import yaml

from promql_queries import FILES, Json, labels_of, rules
from trireme_monitoring.alerts import Alert, alerts

HERE = Path(__file__).parent / "rules"
ROOT = Path(__file__).resolve().parents[3]
SHIPPED = FILES / "rules" / "alerts.yaml"
TESTS = sorted(HERE.glob("*.yaml"))
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
CLAUSE = re.compile(r"\n(?:unless|and) on \([^)]*\)\n")


def promtool(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("path", TESTS, ids=[path.stem for path in TESTS])
def test_an_alert_fires_and_clears(promtool_program: str, path: Path) -> None:
    done = promtool(promtool_program, "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules(promtool_program: str) -> None:
    done = promtool(promtool_program, "check", "rules", SHIPPED)
    assert done.returncode == 0, done.stdout + done.stderr


def checks(path: Path) -> list[Json]:
    """What a file of tests expects, case by case."""
    return [check for case in yaml.safe_load(path.read_text())["tests"] for check in case["alert_rule_test"]]


def test_each_alert_has_tests_in_which_it_fires_and_in_which_it_does_not() -> None:
    by_runbook: dict[str, list[Alert]] = {}
    for alert in alerts():
        by_runbook.setdefault(alert.runbook, []).append(alert)
    assert set(by_runbook) == {path.stem for path in TESTS}
    for path in TESTS:
        found = by_runbook[path.stem]
        expected = checks(path)
        assert {check["alertname"] for check in expected} == {alert.name for alert in found}
        fired = {item["exp_labels"]["severity"] for check in expected for item in check["exp_alerts"]}
        assert fired == {alert.severity for alert in found}
        assert sum(not check["exp_alerts"] for check in expected) >= 2


def mutants(rule: Json) -> Iterator[tuple[str, Json]]:
    """The rule with one thing wrong."""
    expr = str(rule["expr"])
    yield "never", {**rule, "expr": "vector(0) > 1"}
    if rule["for"] != "0m":
        yield "at once", {**rule, "for": "0m"}
    yield "too late", {**rule, "for": "10d"}
    clauses = [*CLAUSE.finditer(expr), None]
    for clause, following in pairwise(clauses):
        end = following.start() if following else len(expr)
        yield f"without {clause[0].split()[0]}", {**rule, "expr": expr[: clause.start()] + expr[end:]}
    arms = expr.split("\nor\n")
    for n in range(len(arms)) if len(arms) > 1 else ():
        yield f"without arm {n}", {**rule, "expr": "\nor\n".join(arms[:n] + arms[n + 1 :])}


RULES = rules()
MUTANTS = [
    pytest.param(n, changed, id=f"{rule['alert']}-{rule['labels']['severity']}-{what}")
    for n, rule in enumerate(RULES)
    for what, changed in mutants(rule)
]


@pytest.mark.parametrize(("n", "changed"), MUTANTS)
def test_the_tests_of_an_alert_notice_when_it_is_wrong(
    promtool_program: str, tmp_path: Path, n: int, changed: Json
) -> None:
    wrong = [changed if i == n else rule for i, rule in enumerate(RULES) if rule["alert"] == changed["alert"]]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "wrong", "rules": wrong}]}))
    (path,) = (path for path in TESTS if checks(path)[0]["alertname"] == changed["alert"])
    test = {**yaml.safe_load(path.read_text()), "rule_files": ["alerts.yaml"]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = promtool(promtool_program, "test", "rules", tmp_path / "test.yaml")
    assert done.returncode != 0
    assert "FAILED" in done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_names_series_and_labels_that_exist(rule: Json) -> None:
    found = labels_of(promql_parser.parse(rule["expr"]))
    texts = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= (found or set())


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: f"{alert.name}-{alert.severity}")
def test_an_alert_leads_to_a_page_that_says_what_to_do(alert: Alert) -> None:
    assert alert.severity in {"critical", "warning"}
    page = (ROOT / "docs" / "runbooks" / f"{alert.runbook}.md").read_text()
    assert page.startswith(f"# {alert.name}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS
    diagnosis = page.partition("## Diagnosis")[2].partition("## Mitigation")[0]
    assert re.search(r"^(kubectl|trireme) ", diagnosis, re.MULTILINE), "a command to type"
    assert page.count("```sh") >= 1


def test_the_table_of_alerts_names_each_with_its_severities_and_its_page() -> None:
    text = (ROOT / "docs" / "dashboards.md").read_text()
    rows = dict(re.findall(r"^\| \[(\w+)\]\((\S+)\) \|", text, re.MULTILINE))
    assert rows == {alert.name: f"runbooks/{alert.runbook}.md" for alert in alerts()}
    severities: dict[str, list[str]] = {}
    for alert in alerts():
        severities.setdefault(alert.name, []).append(alert.severity)
    told = dict(re.findall(r"^\| \[(\w+)\]\(\S+\) \| ([\w, ]+) \|", text, re.MULTILINE))
    assert told == {name: ", ".join(found) for name, found in severities.items()}
