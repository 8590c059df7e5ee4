"""docs/reference/ equals the models, and leaves no field without a word."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trireme.resources import KindInfo, all_kinds
from trireme.resources.crdgen import crd
from trireme.resources.docgen import file_name, page

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference"


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Section, name and schema of every field below a node of a CRD."""
    for name, child in schema.get("properties", {}).items():
        yield path, name, child
        inner = child.get("items", child)
        yield from fields(inner, f"{path}.{name}" + ("[]" if inner is not child else ""))


def all_fields(info: KindInfo[Any]) -> list[tuple[str, str, dict[str, Any]]]:
    root = crd(info)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return [*fields(root["spec"], "spec"), *fields(root["status"], "status")]


@pytest.mark.parametrize("info", all_kinds(), ids=lambda info: info.kind)
def test_pages_equal_the_models(info: KindInfo[Any]) -> None:
    assert (REFERENCE / file_name(info)).read_text() == page(info), "run `make reference`"


def test_there_is_no_page_of_a_kind_that_is_gone() -> None:
    assert {path.name for path in REFERENCE.iterdir()} == {file_name(info) for info in all_kinds()}


@pytest.mark.parametrize("info", all_kinds(), ids=lambda info: info.kind)
def test_every_field_has_a_row_in_the_table_of_its_part(info: KindInfo[Any]) -> None:
    tables = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", page(info), re.M | re.S))
    found = all_fields(info)
    assert len(found) > 50
    assert [(path, name) for path, name, _ in found if f"\n| `{name}` | " not in tables[path]] == []


@pytest.mark.parametrize("info", all_kinds(), ids=lambda info: info.kind)
def test_every_field_is_described(info: KindInfo[Any]) -> None:
    bare = [f"{path}.{name}" for path, name, schema in all_fields(info) if len(schema.get("description", "")) < 8]
    assert bare == []
