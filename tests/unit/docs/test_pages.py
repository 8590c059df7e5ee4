"""Pages lead somewhere and show commands that exist."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from trireme_cli.main import app

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
KUBECTL_VERBS = {"apply", "get", "describe", "logs", "explain", "wait", "delete", "patch", "drain", "cordon", "create"}
HELM_VERBS = {"install", "upgrade", "uninstall"}
CHART = "charts/trireme"


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command in the page's `sh` blocks."""
    for language, block in FENCE.findall(page.read_text()):
        if language != "sh":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            words = words[: words.index("&")] if "&" in words else words
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def unknown_in_trireme(words: list[str]) -> str | None:
    """What `trireme words...` names that the command line lacks."""
    command: Any = typer.main.get_command(app)
    for word in words:
        if word.startswith("-"):
            if command.name == "node":  # its options are another program's
                return None
            options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
            if word.split("=")[0] not in options:
                return f"{command.name} has no option {word}"
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return f"{command.name} has no command {word}"
            command = command.commands[word]
    return None


def unknown_in(words: list[str], targets: set[str]) -> str | None:
    program, *rest = words
    if program.endswith("trireme"):
        return unknown_in_trireme(rest)
    if program == "make":
        missing = [word for word in rest if "=" not in word and word not in targets]
        return f"no target {missing}" if missing else None
    if program == "kubectl":
        verb = next(word for word in rest if not word.startswith("-"))
        return None if verb in KUBECTL_VERBS else f"kubectl {verb} is not supported"
    if program == "helm":
        return (
            None if rest[0] in HELM_VERBS and rest[2:3] in ([CHART], ["--namespace"]) else f"helm {rest} is not known"
        )
    if program.endswith("python") and rest[0] == "-m":
        return None if importlib.util.find_spec(rest[1]) else f"no module {rest[1]}"
    return None if program in {"export", "git", "cd", "kill"} else f"nobody checks {program}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_targets_subcommands_and_options_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = {" ".join(words): unknown_in(words, targets) for words in commands(page)}
    assert {command: problem for command, problem in found.items() if problem} == {}


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(prose(ROOT / "README.md"))}
    reached = set()
    while linked - reached:
        page = (linked - reached).pop()
        reached.add(page)
        if page.suffix == ".md" and page.exists():
            linked |= {
                (page.parent / t.partition("#")[0]).resolve() for t in LINK.findall(prose(page)) if "://" not in t
            }
    assert [page.name for page in PAGES if page.parent.name == "docs" and page not in reached] == []
