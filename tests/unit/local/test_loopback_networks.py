"""Clusters on one computer never share an address, a group id or a scratch directory."""

import ipaddress
import tempfile
from pathlib import Path

import pytest

from trireme_local import network
from trireme_local.node.__main__ import parse_pairs, parse_taint
from trireme_local.node.context import AddressesExhausted, PodAddresses
from trireme_local.sessions import node_marker, scratch_directory


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registry").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "registry"))


def test_each_directory_keeps_its_network_until_it_gives_it_back(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    first, second = network.claim_network(one), network.claim_network(two)
    assert first != second
    assert network.claim_network(one) == first
    network.release_network(one)
    assert network.claim_network(one) != second


def test_a_claim_of_a_removed_directory_lapses(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    number = network.claim_network(gone)
    gone.rmdir()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert network.claim_network(fresh) == number


def test_group_ids_are_unique_and_fit_a_small_user_namespace() -> None:
    ids = {network.node_gid(number, node) for number in range(network.FIRST, network.LAST) for node in (1, 2, 200, 255)}
    assert len(ids) == 4 * (network.LAST - network.FIRST)
    assert max(ids) < 65536


def test_pod_addresses_are_reused_as_late_as_possible() -> None:
    addresses = PodAddresses(ipaddress.IPv4Network("127.9.1.0/29"))
    assert addresses.node_address == "127.9.1.1"
    first = addresses.take()
    addresses.give_back(first)
    taken = [addresses.take() for _ in range(5)]
    assert taken[-1] == first
    with pytest.raises(AddressesExhausted, match="all 5 pod addresses"):
        addresses.take()


def test_the_node_command_line(tmp_path: Path) -> None:
    assert parse_pairs("cpu=4,x.dev/gpu=2") == {"cpu": "4", "x.dev/gpu": "2"}
    assert parse_taint("a=b:NoExecute") == {"key": "a", "value": "b", "effect": "NoExecute"}
    assert node_marker(tmp_path, "n") != node_marker(tmp_path / "other", "n")
    assert len(str(scratch_directory(tmp_path, "n").relative_to(tempfile.gettempdir()))) < 40
