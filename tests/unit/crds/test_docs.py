"""The field reference in docs/ equals the models."""

from pathlib import Path
from typing import Any

import pytest

from trireme.resources import KindInfo, all_kinds
from trireme.resources.docgen import page

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.mark.parametrize("info", all_kinds(), ids=lambda info: info.kind)
def test_field_reference_equals_the_models(info: KindInfo[Any]) -> None:
    text = (DOCS / f"{info.singular}.md").read_text()
    assert text == page(text, info), "run `make crds`"


@pytest.mark.parametrize("info", all_kinds(), ids=lambda info: info.kind)
def test_page_without_the_marker_is_not_overwritten(info: KindInfo[Any]) -> None:
    with pytest.raises(ValueError, match=info.kind):
        page("written by hand", info)
