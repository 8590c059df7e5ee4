"""Every manifest that a page shows is admitted: ours by CRD, model and planner, Kubernetes' own by its schema."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from admission import admit

from trireme.resources.kinds import GROUP

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def manifests(page: Path) -> Iterator[dict[str, Any]]:
    """Of a page's `yaml` blocks, what has an apiVersion: the rest are parts, and values of the chart."""
    for block in BLOCK.findall(page.read_text()):
        for document in yaml.safe_load_all(block):
            if isinstance(document, dict) and "apiVersion" in document:
                yield document


SHOWN = [(page, document) for page in PAGES for document in manifests(page)]


@pytest.mark.parametrize(
    ("page", "document"),
    SHOWN,
    ids=[f"{page.relative_to(ROOT)}-{document['metadata']['name']}" for page, document in SHOWN],
)
def test_a_manifest_on_a_page_is_admitted(page: Path, document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith(f"{GROUP}/"):
        admit(document)
    else:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("README.md", "PretrainJob"),
        ("docs/pretrainjob.md", "PretrainJob"),
        ("docs/finetunejob.md", "FineTuneJob"),
        ("docs/rlhfjob.md", "RLHFJob"),
        ("docs/inferenceservice.md", "InferenceService"),
    ],
)
def test_readme_and_guides_show_a_manifest(name: str, kind: str) -> None:
    assert kind in {document["kind"] for document in manifests(ROOT / name)}
