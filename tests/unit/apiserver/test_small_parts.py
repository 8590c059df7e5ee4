"""Ages, quantities, selectors, JSON paths, names, tokens and the store, each on its own."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme_local.apiserver import names, selectors, structural, tables, yaml_body
from trireme_local.apiserver.builtins import quantities
from trireme_local.apiserver.errors import ApiError
from trireme_local.apiserver.request import negotiate, parse_path
from trireme_local.apiserver.store import ExpiredVersionError, Store


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 300, "3h5m"),
        (47 * 3600, "47h"),
        (49 * 3600, "2d1h"),
        (9 * 86400, "9d"),
        (800 * 86400, "2y70d"),
    ],
)
def test_ages_read_as_kubectl_prints_them(seconds: int, text: str) -> None:
    assert tables.human_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", Fraction(1, 10)),
        ("1.5", Fraction(3, 2)),
        ("2Ki", 2048),
        ("1e3", 1000),
        ("3M", 3_000_000),
        ("1E", 10**18),
    ],
)
def test_quantities_are_exact(text: str, value: Fraction) -> None:
    assert quantities.parse(text) == value


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("a=1", True),
        ("a==1,b!=1", True),
        ("a in (1, 2)", True),
        ("a notin (1)", False),
        ("c notin (1)", True),
        ("a", True),
        ("!a", False),
        ("b>1", True),
        ("b<1", False),
        ("", True),
    ],
)
def test_label_selectors(selector: str, matches: bool) -> None:
    found = selectors.parse(selector, "", frozenset())
    assert found.matches({"metadata": {"labels": {"a": "1", "b": "2"}}}) is matches


def test_a_malformed_selector_is_a_bad_request() -> None:
    for labels, fields in (("a in 1", ""), ("a=b=c", ""), ("", "x"), ("", "spec.other=1")):
        with pytest.raises(ApiError) as caught:
            selectors.parse(labels, fields, frozenset({"metadata.name"}))
        assert caught.value.code == 400


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".a.b", [1]),
        (".list[0].name", ["x"]),
        (".list[-1].name", ["y"]),
        ('.list[?(@.name=="y")].value', [2]),
        (".list[*].name", ["x", "y"]),
        (r".dotted\.key", [3]),
        ("['dotted.key']", [3]),
        (".missing.x", []),
    ],
)
def test_json_paths_of_print_columns(path: str, found: list[Any]) -> None:
    obj = {"a": {"b": 1}, "list": [{"name": "x"}, {"name": "y", "value": 2}], "dotted.key": 3}
    assert tables.json_path(obj, path) == found


@given(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True))
def test_labels_are_subdomains_and_label_values(name: str) -> None:
    assert names.dns_label(name) == []
    assert names.subdomain(f"{name}.{name}") == []
    assert names.label_value(name) == []


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a_b", "a..b", "x" * 254])
def test_bad_names_are_refused(name: str) -> None:
    assert names.subdomain(name)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/api/v1/pods", ("list", "", "pods", "", "", "")),
        ("GET", "/api/v1/namespaces/a/pods/p/log", ("get", "", "pods", "a", "p", "log")),
        ("GET", "/api/v1/namespaces/a", ("get", "", "namespaces", "a", "a", "")),
        ("PUT", "/api/v1/namespaces/a/finalize", ("update", "", "namespaces", "a", "a", "finalize")),
        ("DELETE", "/apis/g.io/v1/things", ("deletecollection", "g.io", "things", "", "", "")),
        ("GET", "/api/v1/watch/namespaces/a/pods", ("watch", "", "pods", "a", "", "")),
    ],
)
def test_paths_name_verb_resource_and_object(method: str, path: str, expected: tuple[str, ...]) -> None:
    info = parse_path(method, path, {})
    assert info is not None
    assert (info.verb, info.group, info.plural, info.namespace, info.name, info.subresource) == expected


def test_the_first_acceptable_form_wins() -> None:
    accept = "application/vnd.kubernetes.protobuf,application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    assert negotiate(accept, ("Table",)).kind == "Table"
    assert negotiate(accept, ()).kind == ""
    assert negotiate("*/*", ()).media_type == "application/json"


def test_the_store_orders_writes_and_forgets_only_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trireme_local.apiserver.store.HISTORY_EVENTS_PER_RESOURCE", 3)
    store = Store(tmp_path / "state.db")
    begun = store.version
    versions = [store.put("/x", "ns", "a", {"metadata": {"name": "a"}, "n": index}).version for index in range(5)]
    assert versions == sorted(set(versions))
    assert [change.version for change in store.changes_since("/x", versions[-2])] == versions[-1:]
    with pytest.raises(ExpiredVersionError):
        store.changes_since("/x", begun)
    removed = store.delete("/x", "ns", "a")
    assert removed.obj["metadata"]["resourceVersion"] == str(versions[-1] + 1)
    store.close()
    again = Store(tmp_path / "state.db")
    assert again.version == versions[-1] + 1
    assert again.list("/x") == []


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("2026-01-01T00:00:00Z", True),
        ("2026-01-01t23:59:59.123456789+02:00", True),
        ("2026-01-01T00:00:00", False),
        ("2026-01-01 00:00:00Z", False),
        ("2026-02-30T00:00:00Z", False),
        ("2026-13-01T00:00:00Z", False),
        ("2026-01-01T24:00:00Z", False),
    ],
)
def test_a_moment_is_written_as_a_real_server_reads_it(text: str, valid: bool) -> None:
    found = structural.validate(structural.validator({"type": "string", "format": "date-time"}), text)
    assert (found == []) is valid


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_json_has_no_number_for_is_no_body(number: str) -> None:
    with pytest.raises(ValueError, match="looking for beginning of value"):
        yaml_body.load_json(f'{{"loss": {number}}}'.encode())
