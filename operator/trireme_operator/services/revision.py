"""Which revision a spec asks for: a name for everything that its pods are made from."""

import json
from typing import Any

from trireme.checkpoints import digest_bytes
from trireme.protocol.serving import AdapterSource
from trireme.resources.inference import MODEL_JOB, InferenceSpec, adapter_field
from trireme.resources.inference_status import ServedModelStatus, TargetStatus
from trireme.resources.status import InputStatus
from trireme_operator.decide.model import to_time
from trireme_operator.services.model import ObservedService, Wanted

IN_PLACE = ("replicas", "adapters", "adapterLimits", "port", "disruptionBudget", "model")
"""Fields that the pods are not made from, or that count as what they lead to."""
NAME_LENGTH = 10


def wanted(observed: ObservedService, spec: InferenceSpec, inputs: list[InputStatus]) -> Wanted:
    """The target revision and the adapters of a spec."""
    known = {entry.field: entry for entry in inputs if entry.uri and entry.digest}
    model = _model(spec, known)
    old = observed.service.status.target
    if model is None:
        return Wanted(spec, adapters(spec, known), old, current=False)
    return Wanted(spec, adapters(spec, known), _target(observed, spec, model, old), current=True)


def _model(spec: InferenceSpec, known: dict[str, InputStatus]) -> ServedModelStatus | None:
    if spec.model.uri is not None:
        return ServedModelStatus(uri=spec.model.uri)
    entry = known.get(MODEL_JOB)
    return None if entry is None or entry.uri is None else ServedModelStatus(uri=entry.uri, digest=entry.digest)


def adapters(spec: InferenceSpec, known: dict[str, InputStatus]) -> tuple[AdapterSource, ...]:
    """The adapters whose files are known."""
    found = []
    for adapter in spec.adapters:
        entry = known.get(adapter_field(adapter.name))
        if adapter.uri is not None:
            found.append(_adapter(name=adapter.name, uri=adapter.uri, base=adapter.base))
        elif entry is not None and entry.uri is not None:
            found.append(_adapter(name=adapter.name, uri=entry.uri, digest=entry.digest, base=adapter.base))
    return tuple(found)


def _adapter(**what: str | None) -> AdapterSource:
    text = json.dumps(what, sort_keys=True).encode()
    return AdapterSource.model_validate({**what, "id": digest_bytes(text).removeprefix("sha256:")[:NAME_LENGTH]})


def _target(
    observed: ObservedService, spec: InferenceSpec, model: ServedModelStatus, old: TargetStatus | None
) -> TargetStatus:
    """The old target where it still is what is asked for: what settings gave it stays through upgrades."""
    digest = digest_bytes(json.dumps(_parts(spec, model), sort_keys=True).encode())
    if old is not None and old.inputs_digest == digest:
        return old
    image, defaults = spec.pods.image or observed.policy.default_image, observed.policy.pod_defaults
    resource, secrets = defaults.device_resource(spec.pods.accelerator), defaults.pull_secrets(spec.pods)
    given = json.dumps([observed.service.uid, digest, image, resource, *secrets])
    return TargetStatus(
        revision=digest_bytes(given.encode()).removeprefix("sha256:")[:NAME_LENGTH],
        inputs_digest=digest,
        image=image,
        device_resource=resource,
        image_pull_secrets=list(secrets),
        model=model,
        since=to_time(int(observed.now)),
    )


def _parts(spec: InferenceSpec, model: ServedModelStatus) -> dict[str, Any]:
    """All that pods are made from. Written without defaults: those that an upgrade brings change no revision."""
    stated = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    room = spec.adapter_room
    return {
        "spec": {name: value for name, value in stated.items() if name not in IN_PLACE},
        "room": None if room is None else [room.count, room.rank],
        "model": [model.uri, model.digest],
    }
