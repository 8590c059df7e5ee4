"""The operator's judgement: pure functions from what was observed to what is to be done."""

from trireme_operator.decide.core import decide, refuse, situation
from trireme_operator.decide.kinds import Admitted, Kind, Refused
from trireme_operator.decide.model import (
    KEY_REFUSED,
    Action,
    Claim,
    Contact,
    CreatePod,
    Decision,
    DeleteJob,
    DeletePod,
    EnsureObjects,
    JobEvent,
    JobView,
    NodeView,
    Observed,
    Obstacle,
    PodView,
    Policy,
    PutTarget,
)

__all__ = [
    "KEY_REFUSED",
    "Action",
    "Admitted",
    "Claim",
    "Contact",
    "CreatePod",
    "Decision",
    "DeleteJob",
    "DeletePod",
    "EnsureObjects",
    "JobEvent",
    "JobView",
    "Kind",
    "NodeView",
    "Observed",
    "Obstacle",
    "PodView",
    "Policy",
    "PutTarget",
    "Refused",
    "decide",
    "refuse",
    "situation",
]
