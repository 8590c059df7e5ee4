"""What the store holds of a job, and which of it a new attempt may resume from.

Every attempt that trains first records its resume point in a<attempt>/resume.json. The chain of these records is the
job's lineage: a checkpoint outside it was committed by a writer that had already been replaced, and is an orphan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import Field

from trireme.checkpoints import JobKeys, parse_step_key
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import ResumePoint
from trireme.protocol.base import WireModel

if TYPE_CHECKING:
    from trireme_trainer.checkpoint.store import ObjectStore

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
        records = {a: ResumeRecord.model_validate_json(store.get(resume_key(keys, a))) for a in attempts}
        return cls(keys, steps, records)

    def lineage(self, before_attempt: int | None = None) -> Iterator[StoredStep]:
        """Steps of the job's lineage, committed or not, newest first; only of attempts below `before_attempt`."""
        trained = [a for a in self.records if before_attempt is None or a < before_attempt]
        attempt = max(trained, default=0)
        ceiling: int | None = None
        while attempt in self.records:
            of_attempt = [s for (a, n), s in self.steps.items() if a == attempt and (ceiling is None or n <= ceiling)]
            yield from sorted(of_attempt, key=lambda s: -s.step)
            resumed = self.records[attempt].resume_from
            if resumed is None or resumed.attempt >= attempt or not self._is_own(resumed):
                return
            attempt, ceiling = resumed.attempt, resumed.step

    def _is_own(self, point: ResumePoint) -> bool:
        parsed = parse_step_key(point.uri.removeprefix(f"s3://{self.keys.bucket}/") + "/" + MANIFEST_NAME)
        return parsed is not None and parsed[0] == self.keys.uid


def resume_key(keys: JobKeys, attempt: int) -> str:
    """Key of an attempt's resume record."""
    return f"{keys.job_prefix}a{attempt}/{RESUME_NAME}"
