"""Models of the four kinds; the CRDs are generated from them."""

from trireme.resources.kinds import GROUP, VERSION, KindInfo, SpecError, all_kinds, kind_named
from trireme.resources.pretrain import PRETRAIN_JOB, PretrainJob, PretrainSpec

__all__ = [
    "GROUP",
    "PRETRAIN_JOB",
    "VERSION",
    "KindInfo",
    "PretrainJob",
    "PretrainSpec",
    "SpecError",
    "all_kinds",
    "kind_named",
]
