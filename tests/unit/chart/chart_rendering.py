"""Helm on the chart: what it renders from values, and what it says of values that it refuses."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "trireme"
NAMESPACE = "trireme-system"
SCENARIOS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}

Json = dict[str, Any]


def helm(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Helm without a cluster."""
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


@dataclass(frozen=True)
class Rendering:
    """Objects of one rendering of the chart."""

    objects: list[Json] = field(repr=False)

    @classmethod
    def of(cls, program: str, *arguments: str, chart: Path = CHART) -> "Rendering":
        """Render the chart as release `trireme`; fails with what Helm says."""
        done = helm(program, "template", "trireme", str(chart), "--namespace", NAMESPACE, *arguments)
        assert done.returncode == 0, done.stderr
        return cls([found for found in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if found is not None])

    def all(self, kind: str) -> list[Json]:
        """All objects of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Json:
        """The only object of a kind, or that of a name; fails where there is none, or more than one."""
        (found,) = [item for item in self.all(kind) if name in (None, item["metadata"]["name"])]
        return found

    @property
    def inventory(self) -> set[str]:
        """Kind/name of everything, with the namespace where it is another than the release's."""
        names = set()
        for found in self.objects:
            meta = found["metadata"]
            away = meta.get("namespace", NAMESPACE) != NAMESPACE
            names.add(f"{found['kind']}/{meta['namespace'] + '/' if away else ''}{meta['name']}")
        return names

    @property
    def container(self) -> Json:
        """The operator's container."""
        (container,) = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def flags(self) -> dict[str, str]:
        """The operator's flags."""
        return dict(argument.removeprefix("--").split("=", 1) for argument in self.container["args"])
