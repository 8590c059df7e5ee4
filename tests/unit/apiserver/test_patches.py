"""Merge and strategic-merge patches."""

from __future__ import annotations

import pytest

from trireme_local.apiserver import definitions, patches
from trireme_local.apiserver.errors import ApiError

POD = definitions.named("io.k8s.api.core.v1.Pod")


def pod(*containers: dict[str, object]) -> dict[str, object]:
    return {"metadata": {"name": "p", "finalizers": ["a", "b"]}, "spec": {"containers": list(containers)}}


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"a": "foo"}, None, None),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        (["a"], {"a": 1}, {"a": 1}),
    ],
)
def test_merge_patch_follows_rfc_7386_appendix_a(target: object, patch: object, expected: object) -> None:
    assert patches.merge_patch(target, patch) == expected


def test_containers_merge_by_name() -> None:
    target = pod({"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "1"})
    patch = {"spec": {"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]}}
    merged = patches.strategic_merge(target, patch, POD)["spec"]["containers"]
    assert merged == [
        {"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        {"name": "b", "image": "1"},
    ]


def test_directives_delete_replace_and_order() -> None:
    target = pod({"name": "a", "image": "1"}, {"name": "b", "image": "1"})
    removed = patches.strategic_merge(target, {"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}, POD)
    assert [item["name"] for item in removed["spec"]["containers"]] == ["b"]
    replaced = patches.strategic_merge(
        target, {"spec": {"containers": [{"name": "c", "image": "x"}, {"$patch": "replace"}]}}, POD
    )
    assert replaced["spec"]["containers"] == [{"name": "c", "image": "x"}]
    order = {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}
    ordered = patches.strategic_merge(target, order, POD)["spec"]["containers"]
    assert [item["name"] for item in ordered] == ["b", "a"]
    fewer = patches.strategic_merge(target, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}, POD)
    assert fewer["metadata"]["finalizers"] == ["b"]


def test_a_list_without_a_merge_strategy_is_replaced() -> None:
    target = pod({"name": "a", "image": "1", "args": ["x", "y"]})
    patch = {"spec": {"containers": [{"name": "a", "args": ["z"]}]}}
    assert patches.strategic_merge(target, patch, POD)["spec"]["containers"][0]["args"] == ["z"]


def test_an_item_without_its_merge_key_is_a_bad_request() -> None:
    with pytest.raises(ApiError) as caught:
        patches.strategic_merge(pod({"name": "a"}), {"spec": {"containers": [{"image": "x"}]}}, POD)
    assert caught.value.code == 400
