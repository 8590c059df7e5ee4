"""What the operator's settings say where a spec leaves something out.

It is filled in once, when a spec is accepted, and is part of what is frozen then: changed settings, like an upgrade of
the operator, change no job that runs and start no new revision of a service.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from trireme.planning.hardware import HARDWARE
from trireme.resources.common import Accelerator, LocalReference, PodSettings
from trireme.resources.kinds import Choice
from trireme_operator.decide.kinds import Admitted

EVERY_KIND = "*"
RULE = "left out: the operator's setting"

PodsT = TypeVar("PodsT", bound=PodSettings)


@dataclass(frozen=True)
class PodDefaults:
    """Settings for the pods of jobs and services."""

    device_resources: Mapping[str, str] = field(default_factory=dict)
    """Extended resource of one device by kind of accelerator; `*` stands for every other kind that has devices."""
    image_pull_secrets: tuple[str, ...] = ()

    def device_resource(self, accelerator: Accelerator) -> str | None:
        """The resource of an accelerator whose spec names none; None where there is no setting for it."""
        if accelerator.resource_name is not None:
            return None
        others = self.device_resources.get(EVERY_KIND) if HARDWARE[accelerator.kind].resource_name else None
        return self.device_resources.get(accelerator.kind, others)

    def pull_secrets(self, pods: PodSettings) -> tuple[str, ...]:
        """Names of the pull secrets of pods whose spec names none."""
        return () if pods.image_pull_secrets else self.image_pull_secrets


def with_defaults(pods: PodsT, device_resource: str | None, pull_secrets: tuple[str, ...]) -> PodsT:
    """`pods` with what was chosen for what they leave out."""
    update: dict[str, object] = {}
    if device_resource is not None:
        update["accelerator"] = pods.accelerator.model_copy(update={"resource_name": device_resource})
    if pull_secrets:
        update["image_pull_secrets"] = [LocalReference(name=name) for name in pull_secrets]
    return pods.model_copy(update=update)


def fill_in(admitted: Admitted, defaults: PodDefaults) -> Admitted:
    """An accepted spec with the settings in the place of what it leaves out, and what was chosen."""
    workers = admitted.spec.workers
    resource, secrets = defaults.device_resource(workers.accelerator), defaults.pull_secrets(workers)
    spec = admitted.spec.model_copy(update={"workers": with_defaults(workers, resource, secrets)})
    return replace(admitted, spec=spec, choices=(*admitted.choices, *_choices(resource, secrets)))


def _choices(resource: str | None, secrets: tuple[str, ...]) -> Iterator[Choice]:
    if resource is not None:
        yield Choice("workers.accelerator.resourceName", resource, RULE)
    if secrets:
        yield Choice("workers.imagePullSecrets", ", ".join(secrets)[:256], RULE)
