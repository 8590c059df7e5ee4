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
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")
KUBECTL_VERBS = {
    *("apply", "get", "describe", "logs", "explain", "wait", "delete", "patch", "drain", "cordon", "create"),
    *("annotate", "label", "rollout", "scale", "port-forward", "auth", "config", "api-resources"),
}
HELM_VERBS = {"install", "upgrade", "uninstall", "template", "lint", "rollback", "history", "get", "show"}
ELSEWHERE = {"export", "git", "cd", "kill", "curl", "docker", "kind"}
"""Programs that this project does not bring: nobody here can say what they take."""
OWN_FOLDERS = ("examples/", "charts/", "images/", "scripts/", "benchmarks/", "docs/", "crds/")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Where a page leads; what looks like a link in a piece of code is none."""
    return LINK.findall(INLINE.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command in the page's `sh` blocks, and of those of `trireme` and `make` in its sentences."""
    for language, block in FENCE.findall(page.read_text()):
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                yield from simple_commands(line)
    for span in INLINE.findall(prose(page)):
        program, _, rest = span.partition(" ")
        if program.split("/")[-1] in {"trireme", "make"} and re.match(r"[a-z]", rest):
            first, *others = shlex.split(rest)
            yield from ([program, name, *others] for name in first.split("|"))


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, without variables set for them and what it sends to the background."""
    words = shlex.split(line, comments=True)
    while words:
        end = next((i for i, word in enumerate(words) if word in {"&", "&&", "|", "||"}), len(words))
        command, words = words[:end], words[end + 1 :]
        while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
            command = command[1:]
        if command:
            yield command


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
    missing_files = [word for word in rest if word.startswith(OWN_FOLDERS) and not (ROOT / word).exists()]
    if missing_files:
        return f"no file {missing_files}"
    if program.endswith("trireme"):
        return unknown_in_trireme(rest)
    if program == "make":
        missing = [word for word in rest if "=" not in word and word not in targets]
        return f"no target {missing}" if missing else None
    if program in {"kubectl", "helm"}:
        verb = next(w for before, w in zip(["", *rest], rest, strict=False) if w[0] != "-" and before != "-n")
        known = KUBECTL_VERBS if program == "kubectl" else HELM_VERBS
        return None if verb in known else f"{program} {verb} is not known here"
    if program.endswith("python") and rest[0].startswith(OWN_FOLDERS):
        return None
    if program.endswith("python") and rest[0] == "-m":
        return None if importlib.util.find_spec(rest[1]) else f"no module {rest[1]}"
    return None if program in ELSEWHERE else f"nobody checks {program}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in links(page):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_name_targets_subcommands_and_options_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = {" ".join(words): unknown_in(words, targets) for words in commands(page)}
    assert {command: problem for command, problem in found.items() if problem} == {}


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in links(ROOT / "README.md")}
    reached = set()
    while linked - reached:
        page = (linked - reached).pop()
        reached.add(page)
        if page.suffix == ".md" and page.exists():
            linked |= {(page.parent / t.partition("#")[0]).resolve() for t in links(page) if "://" not in t}
    assert [page for page in PAGES if page.is_relative_to(ROOT / "docs") and page not in reached] == []
