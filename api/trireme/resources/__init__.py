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
from trireme.resources.rlhf import RLHF_JOB, RLHFJob, RLHFSpec

__all__ = [
    "FINETUNE_JOB",
    "GROUP",
    "INFERENCE_SERVICE",
    "PRETRAIN_JOB",
    "RLHF_JOB",
    "VERSION",
    "FineTuneJob",
    "FineTuneSpec",
    "InferenceService",
    "InferenceSpec",
    "JobKind",
    "KindInfo",
    "PretrainJob",
    "PretrainSpec",
    "RLHFJob",
    "RLHFSpec",
    "SpecError",
    "all_kinds",
    "job_kind_named",
    "job_kinds",
    "kind_named",
]
