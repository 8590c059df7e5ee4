"""Models of the four kinds; the CRDs are generated from them."""

from trireme.resources.finetune import FINETUNE_JOB, FineTuneJob, FineTuneSpec
from trireme.resources.kinds import GROUP, VERSION, KindInfo, SpecError, all_kinds, kind_named
from trireme.resources.pretrain import PRETRAIN_JOB, PretrainJob, PretrainSpec
from trireme.resources.rlhf import RLHF_JOB, RLHFJob, RLHFSpec

__all__ = [
    "FINETUNE_JOB",
    "GROUP",
    "PRETRAIN_JOB",
    "RLHF_JOB",
    "VERSION",
    "FineTuneJob",
    "FineTuneSpec",
    "KindInfo",
    "PretrainJob",
    "PretrainSpec",
    "RLHFJob",
    "RLHFSpec",
    "SpecError",
    "all_kinds",
    "kind_named",
]
