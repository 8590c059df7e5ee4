"""What the store holds of a job, and which of it a new attempt may resume from.

Every attempt that trains first records its resume point in a<attempt>/resume.json; each of its manifests repeats it.
The chain of these records is the job's lineage: a checkpoint outside it was committed by a writer that had already been
replaced, and is an orphan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from trireme.checkpoints import JobKeys, parse_step_key
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import ResumePoint
from trireme.protocol.base import WireModel
from trireme_storage.fetch import Corrupt, read_manifest
from trireme_storage.store import ObjectNotFound

if TYPE_CHECKING:
    from trireme_storage.store import ObjectStore

RESUME_NAME = "resume.json"
_STEP_OBJECT = re.compile(r"a(\d+)/step-(\d+)/(.+)")
_RESUME_OBJECT = re.compile(r"a(\d+)/" + re.escape(RESUME_NAME))


class ResumeRecord(WireModel):
    """a<attempt>/resume.json: where an attempt started."""

    attempt: int
    resume_from: ResumePoint | None = Field(default=None, description="Absent: at step 0.")


@dataclass
class StoredStep:
    """One .../a<attempt>/step-<n>/ in the store."""

    uid: str
    attempt: int
    step: int
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of every object by its name under the step, the manifest included."""
    modified: datetime | None = None
    """Of the newest object."""

    @property
    def committed(self) -> bool:
        """Whether it has a manifest."""
        return MANIFEST_NAME in self.sizes


@dataclass
class Inventory:
    """All steps and resume records under one job's prefix."""

    keys: JobKeys
    steps: dict[tuple[int, int], StoredStep]
    records: dict[int, ResumeRecord]
    unplaced: dict[int, str] = field(default_factory=dict)
    """Why it is not known where an attempt started: RecordInvalid or, with something committed, RecordMissing."""

    @classmethod
    def read(cls, store: ObjectStore, keys: JobKeys) -> Inventory:
        """List the job's prefix. Raises StoreError."""
        steps: dict[tuple[int, int], StoredStep] = {}
        attempts: list[int] = []
        for entry in store.entries(keys.job_prefix + "a"):
            name = entry.key[len(keys.job_prefix) :]
            if match := _STEP_OBJECT.fullmatch(name):
                attempt, number = int(match[1]), int(match[2])
                step = steps.setdefault((attempt, number), StoredStep(keys.uid, attempt, number))
                step.sizes[match[3]] = entry.bytes
                step.modified = max(entry.modified, step.modified or entry.modified)
            elif match := _RESUME_OBJECT.fullmatch(name):
                attempts.append(int(match[1]))
        found = cls(keys, steps, {})
        for attempt in attempts:
            found._read_record(store, attempt)
        for attempt in {a for (a, _), step in steps.items() if step.committed} - set(found.records):
            found._read_manifests(store, attempt)
        return found

    @property
    def newest_attempt(self) -> int:
        """The newest attempt that left a resume record or a checkpoint; 0 when none did."""
        return max((*self.records, *self.unplaced), default=0)

    def _read_record(self, store: ObjectStore, attempt: int) -> None:
        try:
            self.records[attempt] = ResumeRecord.model_validate_json(store.get(resume_key(self.keys, attempt)))
        except ObjectNotFound:
            return
        except ValidationError:
            self.unplaced[attempt] = "RecordInvalid"

    def _read_manifests(self, store: ObjectStore, attempt: int) -> None:
        """Without its record, an attempt's start is told by any manifest of it."""
        for step in sorted((s for (a, _), s in self.steps.items() if a == attempt and s.committed), key=_number):
            try:
                manifest = read_manifest(store, self.keys.manifest(attempt, step.step))
            except Corrupt:
                continue
            if manifest.began is not None and manifest.attempt == attempt:
                self.records[attempt] = ResumeRecord(attempt=attempt, resume_from=manifest.began.resume_from)
                self.unplaced.pop(attempt, None)
                return
        self.unplaced.setdefault(attempt, "RecordMissing")

    def lineage(
        self, before_attempt: int | None = None, *, from_point: ResumePoint | None = None
    ) -> Iterator[StoredStep]:
        """Steps of the job's lineage, committed or not, newest first.

        Only of attempts below `before_attempt`, or from a point on which another job resumed.
        """
        for attempt, ceiling in self._links(before_attempt, from_point)[0]:
            of_attempt = [s for (a, n), s in self.steps.items() if a == attempt and (ceiling is None or n <= ceiling)]
            yield from sorted(of_attempt, key=_number, reverse=True)

    def inherited(
        self, before_attempt: int | None = None, *, from_point: ResumePoint | None = None
    ) -> ResumePoint | None:
        """The checkpoint of an earlier job from which the lineage began, if it began from one."""
        return self._links(before_attempt, from_point)[1]

    def _links(
        self, before_attempt: int | None, from_point: ResumePoint | None
    ) -> tuple[list[tuple[int, int | None]], ResumePoint | None]:
        """(attempt, newest step of it that counts) along the lineage, and the point where it leaves this job."""
        trained = [a for a in self.records if before_attempt is None or a < before_attempt]
        attempt, ceiling = max(trained, default=0), None
        if from_point is not None:
            attempt, ceiling = from_point.attempt, from_point.step
        links: list[tuple[int, int | None]] = []
        while True:
            links.append((attempt, ceiling))
            resumed = self.records[attempt].resume_from if attempt in self.records else None
            if resumed is None:
                return links, None
            if uid_of(self.keys, resumed) != self.keys.uid:
                return links, resumed
            if resumed.attempt >= attempt:
                return links, None
            attempt, ceiling = resumed.attempt, resumed.step


def uid_of(keys: JobKeys, point: ResumePoint) -> str | None:
    """UID of the job of this name that wrote a checkpoint; None when it lies anywhere else."""
    parsed = parse_step_key(point.uri.removeprefix(f"s3://{keys.bucket}/") + "/" + MANIFEST_NAME)
    if parsed is None or replace(keys, uid=parsed[0]).job_prefix not in point.uri + "/":
        return None
    return parsed[0]


def _number(step: StoredStep) -> int:
    return step.step


def resume_key(keys: JobKeys, attempt: int) -> str:
    """Key of an attempt's resume record."""
    return f"{keys.job_prefix}a{attempt}/{RESUME_NAME}"
