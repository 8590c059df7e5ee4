"""Kubernetes Events with deterministic names: a repeated event counts up instead of filling the store."""

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from trireme.resources import GROUP, VERSION
from trireme_operator.apply.api import Api, ApiError, path_of
from trireme_operator.decide import JobEvent

log = logging.getLogger(__name__)

COMPONENT = "trireme-operator"
MAX_REMEMBERED = 4096
MIN_REPEAT_SECONDS = 5.0


class Subject(Protocol):
    """What an event is about: an object of any kind of ours."""

    @property
    def kind(self) -> str: ...

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def uid(self) -> str: ...


@dataclass
class _Seen:
    first: datetime
    last: datetime
    count: int


def _digest(job: Subject, event: JobEvent) -> str:
    return hashlib.sha256(f"{job.uid}/{event.reason}/{event.message}".encode()).hexdigest()[:16]


class EventRecorder:
    """Writes events on jobs and services. Failing to do so is logged and never stops anything."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    async def record(self, job: Subject, event: JobEvent, now: datetime | None = None) -> None:
        """Create the event, or count it up when the same one was seen before."""
        moment = now or datetime.now(UTC)
        digest = _digest(job, event)
        seen = self._seen.get(digest)
        if seen is None:
            seen = self._seen[digest] = _Seen(moment, moment, 0)
        elif (moment - seen.last).total_seconds() < MIN_REPEAT_SECONDS:
            return
        seen.last, seen.count = moment, seen.count + 1
        self._seen.move_to_end(digest)
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        name = f"{job.name}.{digest}"
        try:
            await self._api.apply(
                path_of("", "v1", "events", job.namespace, name), self._manifest(job, event, name, seen)
            )
        except ApiError as error:
            log.warning("event %s on %s/%s was not recorded: %s", event.reason, job.namespace, job.name, error)
            seen.count -= 1
            if seen.count == 0:
                self._seen.pop(digest, None)

    async def ensure(self, job: Subject, event: JobEvent, now: datetime | None = None) -> None:
        """Create the event unless it is known to have been recorded, by this process or another."""
        digest = _digest(job, event)
        if digest in self._seen:
            return
        moment = now or datetime.now(UTC)
        seen = _Seen(moment, moment, 1)
        name = f"{job.name}.{digest}"
        try:
            await self._api.create(path_of("", "v1", "events", job.namespace), self._manifest(job, event, name, seen))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                log.warning("event %s on %s/%s was not recorded: %s", event.reason, job.namespace, job.name, error)
                return
        self._seen[digest] = seen

    def _manifest(self, job: Subject, event: JobEvent, name: str, seen: _Seen) -> dict[str, object]:
        def text(moment: datetime) -> str:
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": job.namespace},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": job.kind,
                "namespace": job.namespace,
                "name": job.name,
                "uid": job.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": COMPONENT},
            "reportingComponent": f"{GROUP}/operator",
            "reportingInstance": self._instance[:128],
            "firstTimestamp": text(seen.first),
            "lastTimestamp": text(seen.last),
            "count": seen.count,
        }
