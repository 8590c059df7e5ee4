"""Write the chart's dashboards and rules: `python -m trireme_monitoring charts/trireme/files`."""

import sys
from pathlib import Path

from trireme_monitoring.alerts import rules_file
from trireme_monitoring.dashboards import all_boards


def files() -> dict[str, str]:
    """Content of each file, by its path below the chart's `files`."""
    made = {f"dashboards/{board.uid}.json": board.to_json() for board in all_boards()}
    return {**made, "rules/alerts.yaml": rules_file()}


def write(folder: Path) -> None:
    """Write all files, and remove those of dashboards and rules that are no more."""
    made = files()
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in [*folder.glob("dashboards/*"), *folder.glob("rules/*")]:
        if str(path.relative_to(folder)) not in made:
            path.unlink()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
