"""What an agent and its ranks say to each other (JSON lines), and what agents say among themselves (HTTP)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from trireme.checkpoints import ShardFile
from trireme.checkpoints.samples import Sample
from trireme.protocol import FailureKind, Progress, Section, Settings
from trireme.protocol.base import WireModel


class Beat(WireModel):
    """Every second from a thread of the rank: the process is scheduled and its main loop was last seen when."""

    type: Literal["beat"] = "beat"
    loop_seconds: float = Field(description="Since the main loop's last sign of life.")


class SectionEvent(WireModel):
    """The rank enters a section; in STEP, it begins the step after `step`."""

    type: Literal["section"] = "section"
    section: Section
    step: int


class ProgressEvent(WireModel):
    """The rank completed a step."""

    type: Literal["progress"] = "progress"
    progress: Progress
    completed_at: float = Field(default=0.0, description="Unix time at which the step was complete; 0 when none was.")
    peak_memory_bytes: int = 0
    part_seconds: dict[str, float] = Field(
        default_factory=dict, description="Parts of the newest step whose times this rank knows."
    )
    busy_seconds: float | None = Field(
        default=None, description="Of that step, what needed no other data-parallel rank."
    )
    skew_seconds: float | None = Field(default=None, description="The same minus the mean of all ranks.")


class SavedEvent(WireModel):
    """The rank wrote its part of a checkpoint to the node's disk."""

    type: Literal["saved"] = "saved"
    step: int
    tokens: int
    directory: str
    files: list[str]
    stall_seconds: float
    manifest: dict[str, Any] | None = Field(default=None, description="From rank 0: the manifest without its files.")


class SaveFailedEvent(WireModel):
    """The rank could not write its part of a checkpoint; it trains on."""

    type: Literal["saveFailed"] = "saveFailed"
    step: int
    reason: str
    message: str
    directory: str = Field(default="", description="Where the files were to go; what got there is worth nothing.")


class ExportedEvent(WireModel):
    """Rank 0 wrote the model in Hugging Face layout."""

    type: Literal["exported"] = "exported"
    directory: str
    manifest: dict[str, Any] = Field(description="The export's manifest without its files.")


class SamplesEvent(WireModel):
    """Some of what the policy learns from in a step."""

    type: Literal["samples"] = "samples"
    samples: list[Sample]


class FailedEvent(WireModel):
    """The rank ends by an exception. Also written to a file, in case the channel goes first."""

    type: Literal["failed"] = "failed"
    kind: FailureKind
    step: int
    exception: str
    message: str
    traceback_tail: str


class Inputs(WireModel):
    """The node's verified copies of data set and checkpoint."""

    type: Literal["inputs"] = "inputs"
    dataset_directory: str
    checkpoint_directory: str | None = None
    weights: dict[str, str] = Field(
        default_factory=dict, description="Folders of the weights that the spec names, by the name of their place."
    )


class Drain(WireModel):
    """Agree on a step with the other ranks, save, exit with DRAINED_EXIT_CODE."""

    type: Literal["drain"] = "drain"


class NewSettings(WireModel):
    """Settings that changed while the job runs."""

    type: Literal["settings"] = "settings"
    settings: Settings


class CheckpointState(WireModel):
    """To rank 0: whether a checkpoint is still on its way to the store, so that the next one waits."""

    type: Literal["checkpoint"] = "checkpoint"
    busy: bool


FromRank = Annotated[
    Beat | SectionEvent | ProgressEvent | SavedEvent | SaveFailedEvent | SamplesEvent | ExportedEvent | FailedEvent,
    Field(discriminator="type"),
]
ToRank = Annotated[Inputs | Drain | NewSettings | CheckpointState, Field(discriminator="type")]
FROM_RANK: TypeAdapter[FromRank] = TypeAdapter(FromRank)
TO_RANK: TypeAdapter[ToRank] = TypeAdapter(ToRank)


class PeerState(WireModel):
    """Answer to GET /v1/peer."""

    job_uid: str
    slot: int
    attempt: int
    rendezvous_attempt: int = 0
    rendezvous_port: int = 0
    all_inputs_ready: bool = Field(default=False, description="Every slot of `rendezvous_attempt` has its inputs.")


class SlotShards(WireModel):
    """POST /v1/shards to slot 0: a slot's files of a checkpoint are in the store, or why they are not."""

    job_uid: str
    attempt: int
    step: int
    slot: int
    files: list[ShardFile] = Field(default_factory=list)
    problem_reason: str | None = None
    problem_message: str = ""
    moving: bool = Field(default=False, description="Other files of this slot came in since its last problem.")
    given_up: bool = Field(default=False, description="This slot will never bring the files of this step.")
