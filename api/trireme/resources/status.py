"""The status of a training job: everything the operator must remember, and everything a user wants to see.

The operator keeps no state of its own. What decides anything is here, written with a resourceVersion precondition;
the rest it can read again from the API server and the agents.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class StatusModel(BaseModel):
    """Base of the status models: camelCase in the API, unknown fields ignored, immutable in Python."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class JobState(StrEnum):
    """The one-word summary of the conditions; the STATE column. The last two are terminal, for ever."""

    PENDING = "Pending"
    REJECTED = "Rejected"
    QUEUED = "Queued"
    SCHEDULING = "Scheduling"
    PREPARING = "Preparing"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


TERMINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED})


class ConditionType(StrEnum):
    """The conditions of a job; all of them are present from the operator's first visit."""

    ACCEPTED = "Accepted"
    INPUTS_READY = "InputsReady"
    SCHEDULED = "Scheduled"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    CHECKPOINT_HEALTHY = "CheckpointHealthy"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Category(StrEnum):
    """Where a second of the job's life went. Every second is in exactly one."""

    QUEUED = "queued"
    SCHEDULING = "scheduling"
    STARTUP = "startup"
    RESTORE = "restore"
    PRODUCTIVE = "productive"
    CHECKPOINT_STALL = "checkpointStall"
    RECOMPUTE = "recompute"
    DOWN = "down"
    SUSPENDED = "suspended"


class GangPhase(StrEnum):
    """How far the current attempt is. Only ever goes forward within an attempt, except Forming <-> Waiting."""

    WAITING = "Waiting"  # no pod of the job exists, or none is wanted until capacity is there
    FENCING = "Fencing"  # the ranks of the attempt before must be known to be dead
    FORMING = "Forming"  # pods are created or replaced, agents come up
    PREPARING = "Preparing"  # slot 0 checks the inputs, prepares the data, proposes a resume point
    RUNNING = "Running"  # the resume point is recorded; ranks run
    DRAINING = "Draining"  # ranks save and exit
    STOPPED = "Stopped"  # suspended: pods are deleted
    FINISHED = "Finished"  # terminal: agents are released


class Condition(StatusModel):
    """A metav1.Condition."""

    type: str = Field(description="Name of the condition.", max_length=316)
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the condition holds.")
    observed_generation: int = Field(default=0, ge=0, description="metadata.generation that this was found for.")
    last_transition_time: datetime = Field(description="When `status` last changed.")
    reason: str = Field(description="Why, as one CamelCase word; docs/ has a table of them.", max_length=1024)
    message: str = Field(default="", description="Why, for people, with the numbers.", max_length=32768)


class ChoiceStatus(StatusModel):
    """A field that was left out, and what was chosen for it."""

    field: str = Field(description="Field of the spec.", max_length=256)
    value: str = Field(description="The value that was chosen.", max_length=256)
    rule: str = Field(description="The rule that chose it.", max_length=1024)


class Resolved(StatusModel):
    """What admission settled. Frozen: an operator upgrade never changes a running job."""

    spec: dict[str, Any] = Field(description="The spec with every default filled in.")
    choices: list[ChoiceStatus] = Field(
        default_factory=list,
        max_length=64,
        description="What was chosen for fields that were left out and depend on others, with the rule.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["field"]},
    )
    plan: dict[str, Any] = Field(description="Layout, batch sizes and memory per device by part.")
    image: str = Field(description="Image of the training pods.")
    protocol: str = Field(description="Version of the operator-agent protocol.")
    slots: int = Field(ge=1, description="Pods of the job, each on a node of its own.")
    ranks_per_slot: int = Field(ge=1, description="Ranks (devices) in each pod.")
    program: str = Field(description="Trainer program that the ranks run.")
    at: datetime = Field(description="When the job was accepted.")


class SlotStatus(StatusModel):
    """One slot of the gang as of the last recorded transition."""

    index: int = Field(ge=0, description="Slot number; slot 0 leads the gang.")
    pod: str = Field(description="Name of the slot's pod.")
    pod_uid: str | None = Field(default=None, description="UID of the pod that took part in the attempt.")
    node: str | None = Field(default=None, description="Node of that pod.")
    address: str | None = Field(default=None, description="IP of that pod.")


class ResumeFrom(StatusModel):
    """The one checkpoint that every rank of the attempt loads."""

    uri: str = Field(description="s3:// URI of the checkpoint.")
    manifest_digest: str = Field(description="sha256:<hex> of its manifest.")
    step: int = Field(ge=0, description="Completed steps at the checkpoint.")
    attempt: int = Field(ge=1, description="The attempt that wrote it.")


class NodeRecord(StatusModel):
    """Faults of the job on one node."""

    node: str = Field(description="Name of the node.")
    failures: int = Field(default=0, ge=0, description="Faults of this job blamed on the node.")
    excluded: bool = Field(
        default=False,
        description="True while the job's pods are kept off the node, as long as enough others are there.",
    )
    reason: str = Field(default="", description="Cause of the last of these faults.")
    at: datetime | None = Field(
        default=None, description="When the last of these faults was seen; an hour later they are forgotten."
    )


class GangStatus(StatusModel):
    """The gang: its attempt and its slots."""

    attempt: int = Field(default=0, ge=0, description="Number of times that the gang was formed; 0 before the first.")
    phase: GangPhase = Field(default=GangPhase.WAITING, description="How far the attempt is.")
    phase_since: datetime | None = Field(default=None, description="When the phase began.")
    cause: str = Field(default="", description="Why the attempt was raised: Created, Resumed, or a fault's cause.")
    nodes: str = Field(default="", description="Ready slots of all slots, for example 2/2.")
    slots: list[SlotStatus] = Field(
        default_factory=list,
        max_length=8192,
        description="The slots of the attempt, in order.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["index"]},
    )
    resume_from: ResumeFrom | None = Field(
        default=None, description="Resume point of the attempt, recorded before any rank starts; absent means step 0."
    )
    recompute_until_step: int = Field(
        default=0, ge=0, description="Steps up to here ran before in an older attempt; their time is recompute."
    )
    not_before: datetime | None = Field(default=None, description="Back-off: pods are not created before this time.")
    scheduling_since: datetime | None = Field(
        default=None, description="When pods were first wanted that are not bound yet; the scheduling deadline's start."
    )
    scheduling_tries: int = Field(default=0, ge=0, description="Times that the scheduling deadline released all pods.")
    room_unseen: bool = Field(
        default=False,
        description="True when all pods are created for the scheduler to find room that is not there yet.",
    )
    drain_cause: str = Field(default="", description="Why the ranks were asked to save and exit.")
    node_records: list[NodeRecord] = Field(
        default_factory=list,
        max_length=8192,
        description="Nodes on which this job met faults, and which of them are excluded.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["node"]},
    )


class ProgressStatus(StatusModel):
    """Training facts, at most ten seconds old while the job runs."""

    step: int = Field(default=0, ge=0, description="Completed optimizer steps.")
    total_steps: int = Field(default=0, ge=0, description="Steps of the whole job.")
    percent: str = Field(default="", description="Completed part, for example 42%.")
    tokens: int = Field(default=0, ge=0, description="Tokens consumed up to `step`.")
    loss: float | None = Field(default=None, description="Training loss of the last step.")
    first_loss: float | None = Field(default=None, description="Training loss of the first step.")
    validation_loss: float | None = Field(default=None, description="Loss of the last validation.")
    learning_rate: float | None = Field(default=None, description="Learning rate of the last step.")
    grad_norm: float | None = Field(default=None, description="Gradient norm of the last step before clipping.")
    tokens_per_second: float | None = Field(default=None, description="Tokens per second of the whole job.")
    tflops_per_device: float | None = Field(default=None, description="Model TFLOP/s per device.")
    mfu: float | None = Field(default=None, description="Model FLOP utilization, 0 to 1.")
    mfu_basis: str | None = Field(default=None, description="Peak that MFU refers to; measured-cpu on CPUs.")
    step_seconds: float | None = Field(default=None, description="Duration of a step.")
    metrics: dict[Annotated[str, Field(max_length=128)], float] = Field(
        default_factory=dict,
        max_length=64,
        description="What the algorithm measures beside the loss, for example reward and kl.",
    )
    eta_seconds: float | None = Field(default=None, description="Expected seconds to the last step.")
    highest_step: int = Field(default=0, ge=0, description="Highest step that any attempt completed.")
    updated_at: datetime | None = Field(default=None, description="When these facts were reported.")


class RejectedStatus(StatusModel):
    """A checkpoint that did not verify."""

    uri: str = Field(description="s3:// URI of the checkpoint.")
    step: int = Field(ge=0, description="Completed steps at the checkpoint.")
    reason: str = Field(description="What is wrong with it, for example DigestMismatch.")
    file: str = Field(default="", max_length=4096, description="The file that is missing or damaged.")
    attempt: int = Field(default=0, ge=0, description="The attempt that looked at it.")


class CheckpointStatus(StatusModel):
    """The newest committed checkpoint and whether saving works."""

    step: int | None = Field(default=None, description="Step of the newest committed checkpoint.")
    uri: str | None = Field(default=None, description="s3:// URI of the newest committed checkpoint.")
    manifest_digest: str | None = Field(default=None, description="sha256:<hex> of its manifest.")
    attempt: int | None = Field(default=None, description="The attempt that wrote it.")
    committed_at: datetime | None = Field(default=None, description="When its manifest was stored.")
    bytes: int | None = Field(default=None, ge=0, description="Size of all its files.")
    verified: bool = Field(default=False, description="True once the checkpoint was read back and its sums agreed.")
    committed_count: int = Field(default=0, ge=0, description="Checkpoints committed over all attempts.")
    upload_seconds: float | None = Field(default=None, description="Upload time of the newest checkpoint.")
    stall_seconds: float | None = Field(default=None, description="Training time lost to the newest checkpoint.")
    failing_reason: str | None = Field(default=None, description="Why saves fail at present.")
    failing_message: str | None = Field(default=None, max_length=4096, description="The same for people.")
    rejected: RejectedStatus | None = Field(
        default=None, description="The newest checkpoint that the last attempt to reject one did not resume from."
    )


class FailureStatus(StatusModel):
    """The culprit of the last fault: the rank that failed first, not the peers that noticed."""

    cause: str = Field(description="Cause of the fault.")
    attempt: int = Field(default=0, ge=0, description="Attempt that it ended.")
    rank: int | None = Field(default=None, description="Rank that failed first.")
    slot: int | None = Field(default=None, description="Slot of that rank, or the slot that was lost.")
    node: str | None = Field(default=None, description="Node of that slot.")
    step: int | None = Field(default=None, description="Last step that the rank had begun.")
    exception: str | None = Field(default=None, description="Type of the exception.")
    message: str = Field(default="", max_length=4096, description="Message of the exception, or what was observed.")
    exit_code: int | None = Field(default=None, description="Exit code of the rank or the container.")
    signal: int | None = Field(default=None, description="Signal that ended the rank.")
    traceback_tail: str = Field(default="", max_length=8192, description="Last lines of the traceback.")
    at: datetime | None = Field(default=None, description="When the operator learned of it.")


class RestartRecord(StatusModel):
    """One fault and the way back, as times at which each stage was reached."""

    attempt: int = Field(ge=1, description="The attempt that the fault ended.")
    cause: str = Field(description="Cause of the fault.")
    node: str | None = Field(default=None, description="Node that was blamed.")
    slot: int | None = Field(default=None, description="Slot that was blamed.")
    rank: int | None = Field(default=None, description="Culprit rank.")
    step: int = Field(default=0, ge=0, description="Last completed step that was reported before the fault.")
    resume_step: int | None = Field(default=None, description="Step at which the next attempt resumed.")
    last_contact_at: datetime | None = Field(default=None, description="Last sign of life of what failed.")
    raised_at: datetime = Field(description="When the fault was recorded and the next attempt raised.")
    fenced_at: datetime | None = Field(default=None, description="When all ranks of the old attempt were fenced.")
    ready_at: datetime | None = Field(default=None, description="When all agents of the new attempt were ready.")
    run_at: datetime | None = Field(default=None, description="When the resume point was recorded and ranks started.")
    first_step_at: datetime | None = Field(default=None, description="When the new attempt completed a step.")
    caught_up_at: datetime | None = Field(default=None, description="When it passed the last step before the fault.")
    lost_before: float | None = Field(
        default=None, ge=0, description="Seconds that the job had lost, see time.lost, when the fault was recorded."
    )


class CauseCount(StatusModel):
    """Restarts of one cause."""

    cause: str = Field(description="Cause, for example NodeLost.")
    count: int = Field(ge=0, description="Restarts with this cause.")


class RestartsStatus(StatusModel):
    """Restarts by cause, against the budgets."""

    total: int = Field(default=0, ge=0, description="Restarts because of faults.")
    application: int = Field(default=0, ge=0, description="Of these, charged to budgets.application.")
    out_of_memory: int = Field(default=0, ge=0, description="Of these, charged to budgets.outOfMemory.")
    hang: int = Field(default=0, ge=0, description="Of these, charged to budgets.hang.")
    infrastructure: int = Field(default=0, ge=0, description="Of these, charged to budgets.infrastructure.")
    by_cause: list[CauseCount] = Field(
        default_factory=list,
        max_length=64,
        description="Restarts of each cause.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["cause"]},
    )
    history: list[RestartRecord] = Field(default_factory=list, max_length=20, description="The last 20 restarts.")
    fruitless: int = Field(default=0, ge=0, description="Restarts in a row without a completed step between them.")
    last_exception: str | None = Field(
        default=None,
        max_length=4096,
        description="Last failure of the program and its step; the same again, before an attempt has passed it, "
        "ends the job.",
    )


class OpenInterval(StatusModel):
    """The interval that is not over yet."""

    category: Category = Field(description="Category that it counts for.")
    since: datetime = Field(description="When it began.")


class CategorySeconds(StatusModel):
    """Seconds by category."""

    queued: float = Field(default=0.0, ge=0, description="Waiting for admission or capacity; no pods.")
    scheduling: float = Field(default=0.0, ge=0, description="Pods exist, not all are bound to nodes.")
    startup: float = Field(default=0.0, ge=0, description="Agents and ranks start, inputs are prepared.")
    restore: float = Field(default=0.0, ge=0, description="Ranks load the resume point.")
    productive: float = Field(default=0.0, ge=0, description="Steps that no attempt had done before.")
    checkpoint_stall: float = Field(default=0.0, ge=0, description="Training waits for a checkpoint.")
    recompute: float = Field(default=0.0, ge=0, description="Steps that an older attempt had done already.")
    down: float = Field(default=0.0, ge=0, description="From a fault until ranks start again.")
    suspended: float = Field(default=0.0, ge=0, description="Suspended by the user or a queue.")

    def total(self) -> float:
        """Sum of all categories, in seconds."""
        return float(sum(self.model_dump().values()))

    def lost(self) -> float:
        """Seconds in which a job that nobody suspended neither trained anything new nor saved it."""
        return self.queued + self.scheduling + self.startup + self.restore + self.recompute + self.down

    def goodput_ratio(self) -> float:
        """Share of these seconds, suspensions left out, that was productive; 0 where there are none."""
        wanted = self.total() - self.suspended
        return self.productive / wanted if wanted > 0 else 0.0


class CauseSeconds(StatusModel):
    """Seconds lost to the faults of one cause."""

    cause: str = Field(description="Cause, for example NodeLost.")
    seconds: float = Field(ge=0, description="Seconds lost.")


class TimeStatus(StatusModel):
    """Where the seconds went: the sum of `seconds` plus the open interval is now - creation."""

    seconds: CategorySeconds = Field(default_factory=CategorySeconds, description="Closed intervals, by category.")
    open: OpenInterval | None = Field(default=None, description="Current interval; absent once the job has ended.")
    attempt_seconds: CategorySeconds = Field(
        default_factory=CategorySeconds, description="Of these, what the agents reported for the current attempt."
    )
    lost: list[CauseSeconds] = Field(
        default_factory=list,
        max_length=64,
        description="Of these, by the cause of the fault, those in queued, scheduling, startup, restore, recompute and "
        "down from a fault until the job was past the last step before it, or had the next fault.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["cause"]},
    )


class DatasetStatus(StatusModel):
    """The prepared data set."""

    uri: str = Field(description="s3:// URI of tokenizer and token files.")
    digest: str = Field(description="Digest; a resume refuses another one.")
    tokens: int = Field(default=0, ge=0, description="Training tokens.")
    validation_tokens: int = Field(default=0, ge=0, description="Validation tokens.")
    documents: int = Field(default=0, ge=0, description="Documents after filtering.")
    vocab_size: int = Field(default=0, ge=0, description="Entries of the tokenizer.")
    rows: int | None = Field(
        default=None, ge=0, description="Rows of several examples each, where examples are packed."
    )


class ModelStatus(StatusModel):
    """The exported model."""

    uri: str = Field(description="s3:// URI of the model in Hugging Face layout with its tokenizer.")
    digest: str = Field(description="sha256:<hex> of the export's manifest.")


class InputStatus(StatusModel):
    """A job whose model this job works on, and that model once it is there: from then on that job may go."""

    field: str = Field(max_length=256, description="Field of the spec that names the job.")
    kind: str = Field(description="Kind of the job.")
    name: str = Field(description="Name of the job.")
    uid: str = Field(description="UID of the job.")
    uri: str | None = Field(default=None, description="s3:// URI of its model; absent until it has finished.")
    digest: str | None = Field(default=None, description="sha256:<hex> of the model's manifest.")
    at: datetime | None = Field(default=None, description="When the model was recorded.")


class ParametersStatus(StatusModel):
    """Sizes of the model."""

    total: int = Field(ge=0, description="Parameters of the model, an adapter's included.")
    trainable: int = Field(ge=0, description="Of these, those that are trained.")


class MemoryStatus(StatusModel):
    """Bytes on the fullest device, by part."""

    weights_bytes: int = Field(ge=0, description="Weights, frozen ones included.")
    gradients_bytes: int = Field(ge=0, description="Gradients and the buffers they are summed in.")
    optimizer_bytes: int = Field(ge=0, description="The optimizer's moments and float32 copies of weights.")
    activations_bytes: int = Field(ge=0, description="What the backward pass needs; an upper bound.")
    logits_bytes: int = Field(ge=0, description="Logits; an upper bound.")
    overhead_bytes: int = Field(ge=0, description="Context, communication buffers, fragmentation.")
    total_bytes: int = Field(ge=0, description="All of it.")
    available_bytes: int | None = Field(default=None, description="Memory of the device; absent: not limited.")


class JobStatus(StatusModel):
    """Observed state of a training job."""

    observed_generation: int = Field(default=0, ge=0, description="metadata.generation that the operator last handled.")
    state: JobState = Field(default=JobState.PENDING, description="Summary of the conditions.")
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=32,
        description="All nine are present from the first visit; state is derived from them.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    resolved: Resolved | None = Field(default=None, description="What admission settled, frozen.")
    inputs: list[InputStatus] = Field(
        default_factory=list,
        max_length=16,
        description="Jobs whose models this job works on, from when each was first seen.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["field"]},
    )
    gang: GangStatus = Field(default_factory=GangStatus, description="The gang of pods and its attempt.")
    progress: ProgressStatus | None = Field(default=None, description="How far training is, and its figures.")
    checkpoint: CheckpointStatus = Field(default_factory=CheckpointStatus, description="Committed checkpoints.")
    restarts: RestartsStatus = Field(default_factory=RestartsStatus, description="Restarts by cause.")
    time: TimeStatus = Field(default_factory=TimeStatus, description="Seconds by category.")
    failure: FailureStatus | None = Field(default=None, description="Culprit of the last fault.")
    dataset: DatasetStatus | None = Field(default=None, description="Prepared data set.")
    parameters: ParametersStatus | None = Field(
        default=None, description="Sizes of the model, where not all of it is trained."
    )
    memory: MemoryStatus | None = Field(
        default=None,
        description="Memory by part, where only preparation knows the model; of other jobs it is in resolved.plan.",
    )
    model: ModelStatus | None = Field(default=None, description="Exported model, once Succeeded.")
    start_time: datetime | None = Field(default=None, description="When the job was accepted.")
    completion_time: datetime | None = Field(default=None, description="When the job ended.")

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of one type, or None before the operator's first visit."""
        return next((c for c in self.conditions if c.type == kind), None)
