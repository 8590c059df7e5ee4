"""Arithmetic of field paths: sets, comparison, merging and removal by schema."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trireme_local.apiserver import fieldset

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "ports": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port", "protocol"],
            "items": {
                "type": "object",
                "properties": {"port": {"type": "integer"}, "protocol": {"type": "string"}, "note": {"type": "string"}},
            },
        },
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "args": {"type": "array", "items": {"type": "string"}},
    },
}
ROOT = fieldset.node(SCHEMA)
NAMES = st.sampled_from(["a", "b", "c"])
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES,
        "labels": st.dictionaries(NAMES, NAMES),
        "ports": st.lists(
            st.fixed_dictionaries({"port": st.integers(1, 3)}, optional={"note": NAMES}),
            unique_by=lambda item: item["port"],
        ),
        "tags": st.lists(NAMES, unique=True),
        "args": st.lists(NAMES),
    },
)


def paths(value: Any) -> frozenset[tuple[str, ...]]:
    return frozenset(fieldset.field_set(value, ROOT))


def test_what_counts_as_a_field_depends_on_the_lists_type() -> None:
    value = {"labels": {"a": "b"}, "ports": [{"port": 80}], "tags": ["x"], "args": ["1", "2"]}
    assert fieldset.to_fields_v1(paths(value)) == {
        "f:labels": {"f:a": {}},
        "f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}}},
        "f:tags": {'v:"x"': {}},
        "f:args": {},
    }


@given(OBJECTS)
def test_fields_v1_keeps_the_set(value: dict[str, Any]) -> None:
    tree = json.loads(json.dumps(fieldset.to_fields_v1(paths(value))))
    assert frozenset(fieldset.from_fields_v1(tree)) == paths(value)


@given(OBJECTS)
def test_nothing_differs_from_itself_and_merging_itself_changes_nothing(value: dict[str, Any]) -> None:
    difference = fieldset.compare(value, value, ROOT)
    assert not difference.changed
    assert not difference.removed
    assert fieldset.merge(value, value, ROOT) == value


@given(OBJECTS, OBJECTS)
def test_a_merge_holds_everything_applied_and_is_idempotent(live: dict[str, Any], config: dict[str, Any]) -> None:
    merged = fieldset.merge(live, config, ROOT)
    assert fieldset.merge(merged, config, ROOT) == merged
    assert paths(config) <= paths(merged) | {path for path in paths(config) if path[-1] == "f:labels"}
    assert not fieldset.compare(merged, fieldset.merge(merged, config, ROOT), ROOT).changed


@given(OBJECTS, OBJECTS)
def test_a_comparison_is_symmetric(one: dict[str, Any], two: dict[str, Any]) -> None:
    forth, back = fieldset.compare(one, two, ROOT), fieldset.compare(two, one, ROOT)
    assert forth.added == back.removed
    assert forth.modified == back.modified


@given(OBJECTS)
def test_removing_every_field_leaves_no_leaf(value: dict[str, Any]) -> None:
    left = fieldset.remove(value, fieldset.with_ancestors(paths(value)), ROOT)
    assert not paths(left)


def test_applied_items_keep_their_order_among_those_of_others() -> None:
    live = {"ports": [{"port": 1}, {"port": 2}, {"port": 3}]}
    config = {"ports": [{"port": 3, "note": "n"}, {"port": 4}]}
    assert [item["port"] for item in fieldset.merge(live, config, ROOT)["ports"]] == [1, 2, 3, 4]


def test_paths_print_as_in_error_messages() -> None:
    assert fieldset.show(("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}', "f:note")) == (
        '.spec.ports[port=80,protocol="TCP"].note'
    )
