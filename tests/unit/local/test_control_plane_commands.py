"""What Kubernetes' own programs are told when they take the local API server's place."""

import dataclasses
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from trireme_local import network
from trireme_local.apiserver.pki import Pki
from trireme_local.control_plane import RealControlPlane


def _plane(folder: Path) -> RealControlPlane:
    binaries = folder / "bin"
    binaries.mkdir()
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        (binaries / name).touch(mode=0o755)
    return RealControlPlane(binaries, folder / "data", "127.20.0.1", 6443, "127.20.0.3", grace_seconds=8.0)


def _flags(command: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in command[1:])


@pytest.mark.parametrize("age", ["new", "made-before-there-was-a-public-key-file"])
def test_the_api_server_can_read_the_key_that_service_account_tokens_are_verified_with(
    tmp_path: Path, age: str
) -> None:
    plane = _plane(tmp_path)
    signing = Pki(plane.data / "pki").signing_key()
    if age != "new":
        (plane.data / "pki" / "sa.pub").unlink()
    plane.prepare()
    flags = _flags(plane.commands()["apiserver"])
    text = Path(flags["service-account-key-file"]).read_bytes()
    # client-go's keyutil.ParsePublicKeysPEM reads an EC key as this block or as "EC PRIVATE KEY", never as PKCS8.
    assert text.startswith(b"-----BEGIN PUBLIC KEY-----")
    assert serialization.load_pem_public_key(text) == signing.public_key()
    signed_with = serialization.load_pem_private_key(Path(flags["service-account-signing-key-file"]).read_bytes(), None)
    assert signed_with.public_key() == signing.public_key(), "an older key stays the key"


def test_cluster_ips_come_from_the_same_range_as_with_the_local_api_server(tmp_path: Path) -> None:
    plane = dataclasses.replace(_plane(tmp_path), service_network=network.service_network(20))
    assert _flags(plane.commands()["apiserver"])["service-cluster-ip-range"] == "127.20.240.0/20"
