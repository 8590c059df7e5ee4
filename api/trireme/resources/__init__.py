"""Models of the four kinds; the CRDs are generated from them."""

from trireme.resources.finetune import FINETUNE_JOB, FineTuneJob, FineTuneSpec
from trireme.resources.kinds import (
    GROUP,
    VERSION,
    JobKind,
    KindInfo,
    SpecError,
    all_kinds,
    job_kind_named,
    job_kinds,
    kind_named,
)
from trireme.resources.pretrain import PRETRAIN_JOB, PretrainJob, PretrainSpec

__all__ = [
    "FINETUNE_JOB",
    "GROUP",
    "PRETRAIN_JOB",
    "VERSION",
    "FineTuneJob",
    "FineTuneSpec",
    "JobKind",
    "KindInfo",
    "PretrainJob",
    "PretrainSpec",
    "SpecError",
    "all_kinds",
    "job_kind_named",
    "job_kinds",
    "kind_named",
]
