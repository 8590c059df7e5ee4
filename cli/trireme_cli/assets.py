"""Files that the command line carries: CRDs and the operator's RBAC rules, as the chart has them."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def assets_folder() -> Path:
    """The packaged assets, or the repository's own folders in an editable installation."""
    packaged = Path(__file__).parent / "assets"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2]


def crd_manifests() -> list[dict[str, Any]]:
    """All CustomResourceDefinitions."""
    return [yaml.safe_load(path.read_text()) for path in sorted((_chart_files() / "crds").glob("*.yaml"))]


def operator_rules() -> dict[str, list[dict[str, Any]]]:
    """The operator's RBAC rules by part: namespaced, nodes, leaderElection."""
    rules: dict[str, list[dict[str, Any]]] = yaml.safe_load((_chart_files() / "operator-rules.yaml").read_text())
    return rules


def _chart_files() -> Path:
    return assets_folder() / "charts" / "trireme" / "files"
