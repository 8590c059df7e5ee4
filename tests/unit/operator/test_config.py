"""The operator's settings."""

from pathlib import Path

import pytest

from trireme_operator.config import OperatorConfig


def parsed(key: Path, **environ: str) -> OperatorConfig:
    return OperatorConfig.parse(["--key-file", str(key)], environ=environ)


def test_outside_a_cluster_a_key_is_made_once(tmp_path: Path) -> None:
    (key,) = parsed(tmp_path / "new" / "key").read_keys()
    assert len(key) >= 32
    assert parsed(tmp_path / "new" / "key").read_keys() == (key,)
    assert (tmp_path / "new" / "key").stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key"]


def test_in_a_cluster_no_replica_makes_a_key_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mount the Secret"):
        parsed(tmp_path / "key", KUBERNETES_SERVICE_HOST="10.0.0.1").read_keys()
    assert not (tmp_path / "key").exists()


def test_a_key_file_has_the_new_key_first_and_older_ones_below(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"n" * 32 + b"\n\n" + b"o" * 40 + b"\n")
    assert parsed(file).read_keys() == (b"n" * 32, b"o" * 40)
    file.write_bytes(b"n" * 32 + b"\nshort\n")
    with pytest.raises(ValueError, match="5 bytes"):
        parsed(file).read_keys()
    file.write_bytes(b"\n")
    with pytest.raises(ValueError, match="at least 32"):
        parsed(file).read_keys()


@pytest.mark.parametrize(
    ("arguments", "environ", "wanted"),
    [
        ([], {}, False),
        (["--may-lack-nodes"], {}, True),
        (["--may-lack-nodes=false"], {"TRIREME_OPERATOR_MAY_LACK_NODES": "true"}, False),
        ([], {"TRIREME_OPERATOR_MAY_LACK_NODES": "true"}, True),
    ],
)
def test_an_operator_is_told_that_it_may_lack_nodes(
    arguments: list[str], environ: dict[str, str], wanted: bool
) -> None:
    assert OperatorConfig.parse(arguments, environ=environ).may_lack_nodes is wanted
