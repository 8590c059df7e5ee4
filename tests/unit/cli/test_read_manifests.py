"""`apply` reads what kubectl reads."""

from pathlib import Path

import pytest
import typer

from trireme_cli.logs import _of_ranks
from trireme_cli.resources import read_manifests


def test_a_folder_gives_all_documents_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: B\n")
    (tmp_path / "a.yaml").write_text("kind: A\n---\n---\nkind: A2\n")
    (tmp_path / "notes.txt").write_text("kind: C\n")
    assert [m["kind"] for m in read_manifests(str(tmp_path))] == ["A", "A2", "B"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"nowhere\.yaml does not exist"):
        read_manifests(str(tmp_path / "nowhere.yaml"))


def test_the_lines_of_one_rank_lose_their_prefix_and_others_are_left_out() -> None:
    lines = ["agent: ready", "[rank 3] step 1", "[rank 0] step 1", "[rank 3] step 2"]
    assert list(_of_ranks(lines, [3])) == ["step 1", "step 2"]
    assert list(_of_ranks(lines, None)) == lines
