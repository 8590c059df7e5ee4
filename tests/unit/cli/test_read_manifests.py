"""`apply` reads what kubectl reads."""

from pathlib import Path

import pytest
import typer

from trireme_cli import main
from trireme_cli.logs import _of_ranks
from trireme_cli.resources import read_manifests

CONFIG = """
current-context: c
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: c, user: {token: t}}]
contexts: [{name: c, context: {cluster: c, user: c}}]
"""


def manifest(kind: str) -> str:
    return f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: x}}\n"


def error_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `trireme arguments...` says when it ends with exit code 1 and one line."""
    monkeypatch.setattr("sys.argv", ["trireme", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_gives_all_documents_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(manifest("B"))
    (tmp_path / "a.yaml").write_text(f"{manifest('A')}---\n---\n{manifest('A2')}")
    (tmp_path / "notes.txt").write_text("kind: C\n")
    assert [m["kind"] for m in read_manifests(str(tmp_path))] == ["A", "A2", "B"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"nowhere\.yaml does not exist"):
        read_manifests(str(tmp_path / "nowhere.yaml"))


def test_the_lines_of_one_rank_lose_their_prefix_and_others_are_left_out() -> None:
    lines = ["agent: ready", "[rank 3] step 1", "[rank 0] step 1", "[rank 3] step 2"]
    assert list(_of_ranks(lines, [3])) == ["step 1", "step 2"]
    assert list(_of_ranks(lines, None)) == lines


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("apiVersion: v1\nmetadata: {name: x}\n", "kind is missing"),
        ("apiVersion: v1\nkind: 5\nmetadata: {name: x}\n", "kind is not a string: 5"),
        ("kind: Pod\nmetadata: {name: x}\n", "apiVersion is missing"),
        ("apiVersion: v1\nkind: Pod\n", "metadata.name is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: x\n", "metadata.name is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: {}}\n", "metadata.name is not a string: {}"),
        ("- kind: Pod\n", "a manifest is a mapping, this is of type list"),
        ("just words\n", "a manifest is a mapping, this is of type str"),
        ("0\n", "a manifest is a mapping, this is of type int"),
        ("kind: [\n", "invalid YAML: "),
    ],
)
def test_what_is_no_manifest_is_one_line_with_file_and_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"{manifest('Good')}---\n{text}")
    (tmp_path / "config").write_text(CONFIG)
    for command in (["apply"], ["delete"]):
        arguments = [*command, "-f", str(path), "--kubeconfig", str(tmp_path / "config")]
        line = error_line(monkeypatch, capsys, *arguments)
        assert line.startswith(f"error: {path}, document 2: {problem}")


@pytest.mark.parametrize("text", [None, "", "[]", "words", "a: [", "kind: Config"])
def test_without_a_usable_kubeconfig_one_line_says_how_to_get_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    line = error_line(monkeypatch, capsys, "get", "pods")
    assert line.startswith(f"error: no cluster: run `trireme local up` or set KUBECONFIG ({path}: ")
