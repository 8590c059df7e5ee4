"""crds/ equals the models and holds only what an API server accepts."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from crd_evaluator import default_refusals
from pydantic import Field
from structural_checker import problems, walk

from trireme.resources import INFERENCE_SERVICE, JobKind, KindInfo, all_kinds, job_kinds
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


@pytest.mark.parametrize("info", job_kinds(), ids=lambda info: info.kind)
def test_columns_and_subresource_of_a_job_are_those_promised(info: JobKind[Any]) -> None:
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


def test_columns_and_subresources_of_a_service_are_those_promised() -> None:
    columns = version(INFERENCE_SERVICE)["additionalPrinterColumns"]
    shown = [c["name"].upper() for c in columns if not c.get("priority")]
    assert shown == ["STATE", "READY", "REPLICAS", "REVISION", "URL", "AGE"]
    scale = version(INFERENCE_SERVICE)["subresources"]["scale"]
    nodes = dict(walk(root(INFERENCE_SERVICE)))
    assert [nodes[path]["type"] for path in scale.values()] == ["integer", "integer", "string"]


@each_kind
def test_all_that_a_rule_can_see_is_bounded(info: KindInfo[Any]) -> None:
    """Kubernetes estimates the cost of a rule from upper bounds; without one it takes 3 MiB of data."""
    for path, node in walk(root(info)["properties"]["spec"], "spec"):
        kind = node.get("type")
        assert kind != "string" or "maxLength" in node or "enum" in node, path
        assert kind != "array" or "maxItems" in node, path
        assert "additionalProperties" not in node or "maxProperties" in node, path


def comparison_cost(node: dict[str, Any]) -> float:
    """What Kubernetes estimates for an equality: 0.1 per element, where it takes what is below for one."""
    if node.get("x-kubernetes-int-or-string"):
        return 0.1 * 3 * 2**20  # a value of no known type may be as large as a request
    if node.get("type") == "string":
        return 0.1 * 4 * int(node.get("maxLength", 64))  # bytes of a character
    return 0.1 * int(node.get("maxItems") or node.get("maxProperties") or 1)


@each_kind
def test_comparing_immutable_fields_stays_below_the_cost_limits(info: KindInfo[Any]) -> None:
    """10,000,000 for one expression (StaticEstimatedCostLimit), 100,000,000 for a CRD (StaticEstimatedCRDCostLimit)."""
    nodes = dict(walk(root(info)["properties"]["spec"]))
    costs = [comparison_cost(nodes[f".{path}"]) for path in info.immutable_paths]
    assert max(costs, default=0) < 10_000_000 / 2
    assert sum(costs) < 100_000_000 / 2


@each_kind
def test_only_the_root_compares_with_the_stored_object(info: KindInfo[Any]) -> None:
    """There alone a rule sees whether the job was accepted, and no list multiplies its cost."""
    for path, node in walk(root(info)):
        for rule in node.get("x-kubernetes-validations", []):
            assert path == "" or "oldSelf" not in rule["rule"], path


class Unbounded(Strict):
    name: str = Field(description="A string without an upper bound.")


class Union(Strict):
    value: int | str = Field(description="A union without a rule.")


@pytest.mark.parametrize(("model", "text"), [(Unbounded, "without maxLength"), (Union, "union of 2 types")])
def test_generator_refuses_what_is_not_structural(model: type[Strict], text: str) -> None:
    with pytest.raises(SchemaError, match=text):
        structural_schema(model)
