"""Whom the leader polls."""

from sim_operator import LOOP
from sim_scenario import Story

from trireme.resources.status import GangPhase
from trireme_operator.decide import Contact
from trireme_operator.observe.poller import Poller
from trireme_operator.observe.queue import WorkQueue


class Asked:
    """An agent client that only notes whom it was told to ask."""

    def __init__(self) -> None:
        self.contacts: dict[str, Contact] = {}
        self.uids: list[str] = []

    async def poll(self, job_uid: str, pod_uid: str, address: str) -> None:
        self.uids.append(pod_uid)

    def forget_except(self, pod_uids: set[str]) -> None:
        assert set(self.uids) <= pod_uids


def test_pods_that_are_given_back_are_asked_until_they_are_gone() -> None:
    """Else silence would only mean that nobody asked, and a pod whose ranks live on would be removed by force."""
    story = Story()
    story.until_step(8)
    story.cluster.nodes[story.agent(1).node].kubelet = False
    story.cluster.edit_job(suspend=True)
    story.until_phase(GangPhase.STOPPED)
    story.operator.deliver()
    uid = story.pod_uid(1)
    asked, world = Asked(), story.operator.world
    assert world.synced
    poller = Poller(world, asked, WorkQueue(), lambda: True, 1.0)  # type: ignore[arg-type]
    LOOP.run_until_complete(poller._round())
    assert uid in asked.uids
