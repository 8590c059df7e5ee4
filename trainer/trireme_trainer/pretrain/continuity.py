"""Whether a job may go on from a checkpoint: the settings that make its run, beside those it was saved with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trireme.checkpoints import Manifest
from trireme_trainer.pretrain.config import PretrainConfig

_FREE = frozenset(
    # How the work is cut up and watched; the run's length is looked at by itself.
    {"steps", "tokens", "micro_batch_size", "recompute", "validation_interval_steps", "validation_batches"}
)


def training_record(config: PretrainConfig) -> dict[str, Any]:
    """The settings that every step depends on, by their fields' names in the spec; kept in each manifest."""
    training = config.spec.training.model_dump(mode="json", by_alias=True, exclude=set(_FREE))
    return {"data.sequenceLength": config.spec.data.sequence_length, **_flat("training", training)}


def differences(config: PretrainConfig, manifest: Manifest) -> str | None:
    """Why a job's training cannot go on from a checkpoint, with fields and numbers; None when it can.

    Equal settings are not asked of a field that the checkpoint does not record: it is newer than the checkpoint.
    """
    here, stored = training_record(config), _recorded(manifest)
    found = [f"{k} is {stored[k]} there, {here[k]} here" for k in here if k in stored and stored[k] != here[k]]
    total, step = config.spec.total_steps, manifest.step
    # A run that is applied again as it was has nothing left to do, and ends as it did.
    ended = step == total == manifest.state.get("totalSteps", total)
    if step >= total and not ended:
        found.append(f"it is of step {step}, this job's run has {total} steps")
    return "; ".join(found) or None


def _recorded(manifest: Manifest) -> Mapping[str, Any]:
    state = manifest.state
    record = state.get("training")
    if isinstance(record, Mapping):
        return record
    samples = state.get("nextSample")
    if not manifest.step or not isinstance(samples, int) or not samples:
        return {}
    # Written before there was a record: what its counters tell.
    return {
        "training.seed": state.get("seed"),
        "training.globalBatchSize": samples // manifest.step,
        "data.sequenceLength": manifest.tokens // samples,
    }


def _flat(prefix: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat.update(_flat(f"{prefix}.{name}", value) if isinstance(value, Mapping) else {f"{prefix}.{name}": value})
    return flat
