"""Operator <-> agent messages.

The operator's leader calls each agent: `PUT /v1/target` with a Target, `GET /v1/report` for a Report. Both are
idempotent and carry the per-job bearer token. (attempt, phase) of a target only ever goes up: a target that does not
supersede-or-equal the one an agent holds is answered 409, so that a deposed leader can undo nothing.
"""

from enum import StrEnum

from pydantic import Field

from trireme.protocol.base import WireModel
from trireme.protocol.memory import DeviceMemory

PROTOCOL_VERSION = "1.0"


def compatible(ours: str, theirs: str) -> bool:
    """Whether two protocol versions can talk: the same major version."""
    return ours.split(".", 1)[0] == theirs.split(".", 1)[0]


class Phase(StrEnum):
    """What the operator wants of the agents in an attempt, in the order it asks for it."""

    HOLD = "hold"  # stop whatever an older attempt runs, acknowledge, wait
    PREPARE = "prepare"  # slot 0 only: preflight, data preparation, verify checkpoints, propose a resume point
    RUN = "run"  # start the ranks at the resume point
    DRAIN = "drain"  # all ranks agree on a step, save, commit, exit with DRAINED_EXIT_CODE
    RELEASE = "release"  # the job is over: upload the last logs and exit 0


PHASE_ORDER = {phase: index for index, phase in enumerate(Phase)}


class Host(WireModel):
    """One slot's address in an attempt; training needs no DNS."""

    slot: int
    address: str = Field(description="Pod IP.")
    agent_port: int


class ResumePoint(WireModel):
    """The ONE checkpoint every rank of an attempt loads, as recorded in status before any rank starts."""

    uri: str = Field(description="s3://... of the checkpoint's directory, ending in /step-<n>.")
    manifest_digest: str = Field(description="sha256:<hex> of the manifest's bytes.")
    step: int
    attempt: int = Field(description="The attempt that wrote it.")


class DatasetRef(WireModel):
    """A prepared data set: tokenizer and token files in the object store under one digest."""

    uri: str
    digest: str
    tokens: int
    validation_tokens: int = 0
    documents: int = 0
    vocab_size: int = 0
    rows: int | None = Field(default=None, description="Rows of several examples each, where examples are packed.")


class ModelRef(WireModel):
    """An exported model in Hugging Face layout with its tokenizer."""

    uri: str
    digest: str = Field(description="sha256:<hex> of the export's manifest, which lists every file with its SHA-256.")


class Settings(WireModel):
    """Fields of the spec that may change while the job runs."""

    checkpoint_interval_steps: int | None = None
    checkpoint_interval_seconds: float | None = None
    keep: int = Field(default=3, ge=1)
    fence_seconds: float = 30.0
    start_timeout_seconds: float = Field(default=600.0, description="Ranks started -> first step.")
    step_timeout_seconds: float = Field(default=600.0, description="No heartbeat or step for this long is a hang.")
    drain_seconds: float = Field(default=120.0, description="Time the ranks get to save after DRAIN.")


class Target(WireModel):
    """What the operator wants of an agent."""

    protocol: str = PROTOCOL_VERSION
    job_uid: str
    attempt: int = Field(ge=1)
    phase: Phase
    hosts: list[Host] = Field(default_factory=list, description="All slots in slot order; complete from RUN on.")
    resume_from: ResumePoint | None = Field(default=None, description="Set from RUN on; absent = start at step 0.")
    dataset: DatasetRef | None = Field(default=None, description="As recorded in status; absent until prepared.")
    recompute_until_step: int = Field(
        default=0,
        description="Steps up to here ran before in an older attempt: their time counts as recompute.",
    )
    verified: ResumePoint | None = Field(
        default=None, description="The newest checkpoint known to be good; the store may offer older ones."
    )
    settings: Settings = Field(default_factory=Settings)


def supersedes(new: Target, held: Target | None) -> bool:
    """Whether an agent that holds `held` takes `new`: (attempt, phase) never goes down."""
    if held is None:
        return True
    return (new.attempt, PHASE_ORDER[new.phase]) >= (held.attempt, PHASE_ORDER[held.phase])


class AgentState(StrEnum):
    """What an agent is doing for the attempt it acknowledged."""

    IDLE = "idle"  # no ranks, nothing asked (HOLD acknowledged, or a slot other than 0 in PREPARE)
    STOPPING = "stopping"  # ranks of an older attempt are being ended
    PREPARING = "preparing"
    PREPARED = "prepared"  # Report.proposal or Report.inputs_problem is set
    RUNNING = "running"  # ranks are alive
    DRAINED = "drained"  # ranks saved, committed and exited as asked
    SUCCEEDED = "succeeded"  # ranks finished the job; slot 0 has exported the model
    FAILED = "failed"  # ranks ended otherwise; Report.failure says how


class Section(StrEnum):
    """Where in its life a rank is; each has its own timeout."""

    START = "start"  # interpreter, imports, process group
    RESTORE = "restore"
    STEP = "step"
    EVALUATE = "evaluate"
    SAVE = "save"
    EXPORT = "export"
    DONE = "done"


class FailureKind(StrEnum):
    """Why ranks ended. The first three of a job are the application's; the rest are infrastructure."""

    EXCEPTION = "Exception"
    NAN_LOSS = "NaNLoss"
    EXIT = "Exit"  # a non-zero exit code without an exception record
    OOM_KILLED = "OOMKilled"
    KILLED = "Killed"  # by a signal from outside
    HANG = "Hang"
    RESTORE = "RestoreFailed"  # the resume point could not be read or did not verify
    CRASHED = "Crashed"  # by a signal of its own making, such as SIGSEGV
    DEVICE = "DeviceFault"  # the accelerator failed
    LOCAL_DISK = "LocalDiskFailed"  # the node's disk is full, read-only or broken
    VICTIM = "Victim"  # a collective failed because a peer went away
    FENCED = "Fenced"  # lost operator and leader for fence_seconds


class Failure(WireModel):
    """The first cause of a gang's end, as one agent sees it."""

    kind: FailureKind
    rank: int
    step: int = Field(description="Last step the rank had begun, 0 before the first.")
    exit_code: int | None = None
    signal: int | None = None
    exception: str | None = Field(default=None, description="Type of the exception.")
    message: str = ""
    traceback_tail: str = Field(default="", description="At most 4 KiB.")
    seconds_ago: float = 0.0


class RankReport(WireModel):
    """One rank."""

    rank: int
    pid: int = Field(default=0, description="In the pod's process namespace.")
    alive: bool
    section: Section
    step: int
    seconds_in_section: float
    seconds_since_heartbeat: float


class Progress(WireModel):
    """Training facts of the whole job; every rank knows the same values."""

    step: int = Field(description="Completed optimizer steps.")
    total_steps: int
    tokens: int = Field(description="Tokens consumed up to `step`, over all attempts.")
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    tflops_per_device: float | None = None
    mfu: float | None = Field(default=None, description="0..1")
    mfu_basis: str | None = Field(default=None, description="Hardware table entry, or 'measured-cpu'.")
    step_seconds: float | None = None
    first_loss: float | None = None
    metrics: dict[str, float] = Field(
        default_factory=dict, description="What the algorithm measures beside the loss, such as reward and kl."
    )


class CheckpointFact(WireModel):
    """A committed checkpoint."""

    step: int
    uri: str
    manifest_digest: str
    bytes: int
    seconds_ago: float
    upload_seconds: float = 0.0
    stall_seconds: float = 0.0


class CheckpointReport(WireModel):
    """Saves of this attempt, as slot 0 knows them."""

    last_committed: CheckpointFact | None = None
    committed: list[CheckpointFact] = Field(default_factory=list, description="Newest 5 of this attempt.")
    failing_reason: str | None = Field(default=None, description="Set while saves fail, for example StoreUnavailable.")
    failing_message: str | None = None
    in_progress_step: int | None = None


class InputsProblem(WireModel):
    """Why the job's inputs cannot be used; becomes InputsReady=False."""

    reason: str = Field(description="CamelCase, one of the table in docs/: BucketNotFound, AccessDenied, ...")
    message: str
    retryable: bool
    attempt_in_store: int | None = Field(
        default=None,
        description="The newest attempt that began to train by what the store holds, where it is not below the one "
        "being prepared: the operator's status was set back. An operator that does not know this waits.",
    )


class RejectedCheckpoint(WireModel):
    """A candidate that did not verify."""

    uri: str
    step: int
    reason: str = Field(
        description="ManifestMissing, ShardMissing, SizeMismatch, DigestMismatch, ManifestInvalid, and for all "
        "checkpoints of an attempt RecordMissing, RecordInvalid"
    )
    file: str


class ModelSizes(WireModel):
    """Parameters of a model, and how many of them are trained."""

    total: int = Field(ge=0)
    trainable: int = Field(ge=0)


class ProposedResume(WireModel):
    """Slot 0's proposal after PREPARE; `resume` absent means step 0 with no candidate in the store."""

    dataset: DatasetRef
    resume: ResumePoint | None = None
    rejected: list[RejectedCheckpoint] = Field(default_factory=list)
    parameters: ModelSizes | None = Field(default=None, description="Where not all of the model is trained.")
    memory: DeviceMemory | None = Field(
        default=None, description="On the fullest device, where only preparation knows the model."
    )


class Report(WireModel):
    """What an agent knows."""

    protocol: str = PROTOCOL_VERSION
    job_uid: str
    slot: int
    pod: str
    node: str
    attempt: int = Field(description="The newest attempt this agent has acknowledged; 0 before the first target.")
    phase: Phase | None = None
    state: AgentState
    ranks_alive: int = Field(description="Ranks of ANY attempt still alive; 0 with attempt N means N-1 is fenced here.")
    ranks: list[RankReport] = Field(default_factory=list)
    progress: Progress | None = None
    checkpoint: CheckpointReport = Field(default_factory=CheckpointReport)
    inputs_problem: InputsProblem | None = None
    proposal: ProposedResume | None = None
    failure: Failure | None = None
    model: ModelRef | None = Field(default=None, description="Slot 0 after SUCCEEDED.")
    seconds_by_category: dict[str, float] = Field(
        default_factory=dict,
        description="Durations within this attempt since RUN: startup, restore, productive, ...",
    )
    terminating: bool = Field(default=False, description="The pod got SIGTERM and asks for a drain.")
    peers_lost_seconds: float = Field(default=0.0, description="Since the last contact with the gang's leader.")


# Exit codes of ranks and agents, kept clear of shells (1, 2, 126..) and signals (128+n).
DRAINED_EXIT_CODE = 75
FENCED_EXIT_CODE = 76
NAN_EXIT_CODE = 77
RESTORE_EXIT_CODE = 78
