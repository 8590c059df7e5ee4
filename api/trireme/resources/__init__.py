"""Models of the four kinds; the CRDs are generated from them."""

from trireme.resources.finetune import FINETUNE_JOB, FineTuneJob, FineTuneSpec
from trireme.resources.inference import INFERENCE_SERVICE, InferenceService, InferenceSpec
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
    "INFERENCE_SERVICE",
    "PRETRAIN_JOB",
    "VERSION",
    "FineTuneJob",
    "FineTuneSpec",
    "InferenceService",
    "InferenceSpec",
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
