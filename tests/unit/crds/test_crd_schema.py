"""crds/ equals the models and holds only what an API server accepts."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from crd_evaluator import default_refusals
from pydantic import Field
from structural_checker import problems, walk

from trireme.resources import KindInfo, all_kinds
from trireme.resources.base import Strict
from trireme.resources.crdgen import MAX_CRD_BYTES, crd, file_name, render
from trireme.resources.schema import SchemaError, structural_schema

CRDS = Path(__file__).resolve().parents[3] / "crds"
each_kind = pytest.mark.parametrize("info", all_kinds(), ids=lambda info: info.kind)


def version(info: KindInfo[Any]) -> dict[str, Any]:
    return crd(info)["spec"]["versions"][0]


def root(info: KindInfo[Any]) -> dict[str, Any]:
    return version(info)["schema"]["openAPIV3Schema"]


@each_kind
def test_crds_folder_equals_the_models(info: KindInfo[Any]) -> None:
    assert (CRDS / file_name(info)).read_text() == render(info), "run `make crds`"


def test_crds_folder_holds_no_other_file() -> None:
    assert {p.name for p in CRDS.iterdir()} == {file_name(info) for info in all_kinds()}


@each_kind
def test_schema_is_structural(info: KindInfo[Any]) -> None:
    assert problems(root(info)) == []


@each_kind
def test_every_default_satisfies_its_schema_and_rules_by_itself(info: KindInfo[Any]) -> None:
    assert list(default_refusals(root(info))) == []


@each_kind
def test_crd_matches_kubernetes_own_schema_of_a_crd(info: KindInfo[Any]) -> None:
    kubernetes_validate.validate(yaml.safe_load(render(info)), kubernetes_validate.latest_version(), strict=True)


@each_kind
def test_plain_kubectl_apply_can_carry_the_crd(info: KindInfo[Any]) -> None:
    assert len(render(info).encode()) < MAX_CRD_BYTES


@each_kind
def test_every_field_is_described(info: KindInfo[Any]) -> None:
    bare = [
        path
        for path, node in walk(root(info))
        if path and not path.endswith(("[]", "{}", ".metadata")) and not node.get("description")
    ]
    assert bare == []


@each_kind
def test_print_columns_show_fields_of_their_type(info: KindInfo[Any]) -> None:
    nodes = dict(walk(root(info)))
    for column in info.print_columns:
        if column.json_path == ".metadata.creationTimestamp":
            continue
        node = nodes[column.json_path]
        shown = "date" if node.get("format") == "date-time" else node["type"]
        assert shown == column.type, column.name


@each_kind
def test_columns_and_subresource_are_those_promised(info: KindInfo[Any]) -> None:
    columns = version(info)["additionalPrinterColumns"]
    assert [c["name"].upper() for c in columns if not c.get("priority")] == [
        "STATE",
        "STEP",
        "PROGRESS",
        "LOSS",
        "NODES",
        "RESTARTS",
        "AGE",
    ]
    assert [c["name"].upper() for c in columns if c.get("priority") == 1] == ["MFU", "LAST-CKPT"]
    assert version(info)["subresources"] == {"status": {}}
    assert crd(info)["spec"]["names"]["categories"] == ["all", "trireme"]


@each_kind
def test_all_that_a_rule_can_see_is_bounded(info: KindInfo[Any]) -> None:
    """Kubernetes estimates the cost of a rule from upper bounds; without one it takes 3 MiB of data."""
    for path, node in walk(root(info)["properties"]["spec"], "spec"):
        kind = node.get("type")
        assert kind != "string" or "maxLength" in node or "enum" in node, path
        assert kind != "array" or "maxItems" in node, path
        assert "additionalProperties" not in node or "maxProperties" in node, path


def comparison_bytes(node: dict[str, Any]) -> int:
    """Upper bound of the bytes that an equality of two values reads."""
    if node.get("type") == "array":
        return int(node["maxItems"]) * comparison_bytes(node["items"])
    if "properties" in node:
        return sum(comparison_bytes(child) for child in node["properties"].values())
    return int(node.get("maxLength", 8))


@each_kind
def test_comparing_immutable_parts_stays_below_the_cost_limit(info: KindInfo[Any]) -> None:
    """A string comparison costs 0.1 per byte and one expression may cost 10,000,000 (StaticEstimatedCostLimit)."""
    nodes = dict(walk(root(info)["properties"]["spec"]))
    for path in info.immutable_paths:
        assert comparison_bytes(nodes[f".{path}"]) * 0.1 < 10_000_000 / 2, path


class Unbounded(Strict):
    name: str = Field(description="A string without an upper bound.")


class Union(Strict):
    value: int | str = Field(description="A union without a rule.")


@pytest.mark.parametrize(("model", "text"), [(Unbounded, "without maxLength"), (Union, "union of 2 types")])
def test_generator_refuses_what_is_not_structural(model: type[Strict], text: str) -> None:
    with pytest.raises(SchemaError, match=text):
        structural_schema(model)
