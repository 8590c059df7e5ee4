"""A job small enough to be started, hurt and mended within seconds."""

import uuid
from typing import Any

from trireme_cli.local import STORE_SECRET

Json = dict[str, Any]


def tiny_job(
    name: str, *, nodes: int = 1, devices: int = 2, steps: int = 400, layout: Json | None = None, **changes: Any
) -> Json:
    """Manifest of a PretrainJob; `changes` are paths in the spec with __ between the names."""
    spec: Json = {
        "model": {
            "shape": {
                "vocab_size": 512,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,  # a job that teaches its model has longer rows
            }
        },
        "data": {
            "sources": [{"uri": "python://stdlib", "include": ["json/*.py", "email/*.py"]}],
            "validation": {"sources": [{"uri": "python://stdlib", "include": ["csv.py"]}]},
            "sequenceLength": 64,
        },
        "training": {
            "steps": steps,
            "globalBatchSize": 8,
            "precision": "fp32",
            "optimizer": {"learningRate": 0.003},
            "validationIntervalSteps": 100000,
            "validationBatches": 2,
        },
        "parallelism": layout or {"data": nodes * devices},
        "workers": {
            "nodes": nodes,
            "devicesPerNode": devices,
            "accelerator": {"kind": "cpu"},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        },
        "checkpoint": {
            # A place of its own: a second try of a test must not resume what the first one left.
            "uri": f"s3://trireme/e2e-{uuid.uuid4().hex[:8]}",
            "pathStyle": True,
            "credentials": {"secretRef": {"name": STORE_SECRET}},
            "intervalSteps": 25,
            "intervalSeconds": 0,
        },
        "faultTolerance": {
            "timeouts": {"fenceSeconds": 10, "startTimeoutSeconds": 120, "stepTimeoutSeconds": 60, "drainSeconds": 30}
        },
    }
    for path, value in changes.items():
        place = spec
        *parents, last = path.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return {
        "apiVersion": "trireme.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": name},
        "spec": spec,
    }
