"""What every kind of training job shares in its CRD: CEL rules, mutable paths and print columns."""

from trireme.resources.common import (
    RESERVED_ENV_NAMES,
    RESERVED_ENV_PREFIXES,
    RESERVED_MOUNT_PATHS,
    RESERVED_VOLUME_PREFIX,
)
from trireme.resources.kinds import PrintColumn, SpecRule

JOB_COLUMNS = (
    PrintColumn("State", "string", ".status.state", "Summary of the conditions."),
    PrintColumn("Step", "integer", ".status.progress.step", "Completed optimizer steps."),
    PrintColumn("Progress", "string", ".status.progress.percent", "Completed part."),
    PrintColumn("Loss", "number", ".status.progress.loss", "Training loss of the last step."),
    PrintColumn("Nodes", "string", ".status.gang.nodes", "Ready slots of all slots."),
    PrintColumn("Restarts", "integer", ".status.restarts.total", "Restarts because of faults."),
    PrintColumn("MFU", "number", ".status.progress.mfu", "Model FLOP utilization, 0 to 1.", priority=1),
    PrintColumn("Last-Ckpt", "date", ".status.checkpoint.committedAt", "Age of the newest checkpoint.", priority=1),
    PrintColumn("Age", "date", ".metadata.creationTimestamp", "Age of the job."),
)

JOB_MUTABLE = (
    "suspend",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "faultTolerance",
    "checkpoint.intervalSteps",
    "checkpoint.intervalSeconds",
    "checkpoint.keep",
)


def _reserved_env_rule() -> str:
    names = ", ".join(f"'{name}'" for name in RESERVED_ENV_NAMES)
    prefixes = " || ".join(f"e.name.startsWith('{prefix}')" for prefix in RESERVED_ENV_PREFIXES)
    return f"self.all(e, !(e.name in [{names}] || {prefixes}))"


def _reserved_paths_rule() -> str:
    paths = ", ".join(f"'{path}', '{path}/'" for path in RESERVED_MOUNT_PATHS)
    return f"self.all(m, !(m.mountPath in [{paths}]))"


def pod_rules(at: str) -> tuple[SpecRule, ...]:
    """Rules of a PodSettings at a dotted path of the spec."""
    return (
        SpecRule(
            f"{at}.env",
            _reserved_env_rule(),
            "these names are set by Trireme and reserved: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and "
            "their like, POD_IP, POD_NAME, POD_NAMESPACE, NODE_NAME, and all that begin with PET_, TRIREME_ or "
            "TORCHELASTIC_",
        ),
        SpecRule(
            f"{at}.volumes",
            f"self.all(v, !v.name.startsWith('{RESERVED_VOLUME_PREFIX}'))",
            f"volume names that begin with {RESERVED_VOLUME_PREFIX} are reserved",
        ),
        SpecRule(
            f"{at}.volumeMounts",
            _reserved_paths_rule(),
            f"these mount paths are used by Trireme and reserved: {', '.join(RESERVED_MOUNT_PATHS)}",
        ),
    )


def credentials_rule(at: str) -> SpecRule:
    """The rule of a Credentials at a dotted path of the spec."""
    return SpecRule(
        at,
        "has(self.secretRef) != (has(self.workloadIdentity) && self.workloadIdentity)",
        "exactly one of secretRef and workloadIdentity must be set",
    )


JOB_RULES = (*pod_rules("workers"), credentials_rule("checkpoint.credentials"))
