"""What the garbage collector does with an object, by the state of its owners."""

from hypothesis import given
from hypothesis import strategies as st

from trireme_local.controllers.ownership import ObjectNode, OwnershipGraph, OwnerState, decide
from trireme_local.kube import CONFIGMAPS

STATES = st.lists(
    st.builds(OwnerState, uid=st.uuids().map(str), exists=st.booleans(), waiting=st.booleans()), max_size=5
)


@given(STATES)
def test_an_object_goes_only_with_its_last_owner(owners: list[OwnerState]) -> None:
    action, uids = decide(owners)
    solid = [owner for owner in owners if owner.exists and not owner.waiting]
    if not owners:
        assert action == "none"
    elif solid:
        assert action in ("none", "drop-references")
        assert not set(uids) & {owner.uid for owner in solid}
        assert (action == "none") == (len(solid) == len(owners))
    else:
        assert action == "delete"


def _node(uid: str, *owners: str, block: bool = False) -> ObjectNode:
    references = [{"uid": owner, "blockOwnerDeletion": block} for owner in owners]
    return ObjectNode(CONFIGMAPS, "n", uid, uid, "1", references)


def test_the_graph_follows_changes_of_references() -> None:
    graph = OwnershipGraph()
    graph.put(_node("child", "a", "b"))
    graph.put(_node("blocker", "a", block=True))
    assert {node.uid for node in graph.dependents("a")} == {"child", "blocker"}
    assert [node.uid for node in graph.blocking("a")] == ["blocker"]
    graph.put(_node("child", "b"))
    assert [node.uid for node in graph.dependents("a")] == ["blocker"]
    graph.remove("blocker")
    assert graph.dependents("a") == []
    assert [node.uid for node in graph.dependents("b")] == ["child"]
