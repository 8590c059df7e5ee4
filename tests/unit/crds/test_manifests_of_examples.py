"""Every manifest in examples/ is admitted by its CRD, by its model and, of a job, by its planner."""

from pathlib import Path

import pytest
import yaml
from admission import admit

from trireme.resources import kind_named

EXAMPLES = Path(__file__).parents[3] / "examples"
MANIFESTS = sorted(EXAMPLES.rglob("*.yaml"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_admitted(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        admit(document)


def test_the_jobs_that_examples_name_are_examples() -> None:
    documents = [d for path in MANIFESTS for d in yaml.safe_load_all(path.read_text())]
    known = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for document in documents:
        kind = kind_named(document["kind"])
        for reference in kind.references(kind.parse(document["spec"])).values():
            assert (reference.kind, reference.name) in known
