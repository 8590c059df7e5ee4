"""What the operator takes from the live spec of an accepted job is what its kind declares mutable."""

import copy
from types import SimpleNamespace
from typing import Any

from trireme.resources import PRETRAIN_JOB
from trireme_operator.decide.core import situation

ACCEPTED: dict[str, Any] = {
    "model": {"preset": "llama3.2-1b"},
    "data": {"sources": [{"uri": "s3://corpus/text"}]},
    "training": {"globalBatchSize": 32, "steps": 1000},
    "workers": {"nodes": 2, "accelerator": {"kind": "h100-sxm"}},
    "checkpoint": {"uri": "s3://runs/x"},
}
EDITED: dict[str, Any] = {
    "model": {"preset": "llama3.2-3b"},
    "data": {"sources": [{"uri": "s3://corpus/other"}], "packing": False},
    "training": {"globalBatchSize": 64, "steps": 2000, "seed": 5},
    "parallelism": {"tensor": 2},
    "workers": {"nodes": 3, "accelerator": {"kind": "h100-sxm"}, "nodeSelector": {"a": "b"}, "image": "other"},
    "checkpoint": {
        "uri": "s3://runs/y",
        "region": "eu-central-1",
        "intervalSteps": 7,
        "intervalSeconds": 8,
        "keep": 9,
    },
    "faultTolerance": {"budgets": {"hang": 1}, "timeouts": {"fenceSeconds": 60}},
    "suspend": True,
    "ttlSecondsAfterFinished": 11,
    "activeDeadlineSeconds": 12,
}


def test_the_operator_takes_the_mutable_fields_from_the_live_spec_and_nothing_else() -> None:
    frozen, live = (PRETRAIN_JOB.parse(spec).to_manifest() for spec in (ACCEPTED, EDITED))
    observed: Any = SimpleNamespace(
        job=SimpleNamespace(spec=live, status=SimpleNamespace(resolved=SimpleNamespace(spec=frozen)))
    )
    expected = copy.deepcopy(frozen)
    for path in PRETRAIN_JOB.mutable_paths:
        *parents, last = path.split(".")
        to, source = expected, live
        for part in parents:
            to, source = to[part], source[part]
        assert to.get(last) != source[last], f"EDITED changes {path}"
        to[last] = source[last]
    taken = situation(observed, PRETRAIN_JOB)
    assert taken is not None
    assert taken.spec.to_manifest() == expected
