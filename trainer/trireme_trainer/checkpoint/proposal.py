"""Which checkpoint a new attempt resumes from: the newest of the job's lineage that verifies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from trireme.checkpoints import JobKeys, Manifest
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import RejectedCheckpoint, ResumePoint
from trireme_storage.fetch import Corrupt, read_manifest
from trireme_storage.store import ObjectStore
from trireme_trainer.checkpoint.fetch import NodeCache
from trireme_trainer.checkpoint.inventory import RESUME_NAME, Inventory, StoredStep, resume_key, uid_of

log = logging.getLogger(__name__)


class ResumeProblem(Exception):
    """What lies in the store cannot be resumed from, and waiting does not help."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class AttemptInStore(Exception):
    """The attempt that is to be prepared, or a newer one, began to train before: it would be written over.

    An attempt's first word in the store follows its preparation, and no attempt is prepared again after that.
    """

    def __init__(self, attempt: int, message: str) -> None:
        super().__init__(message)
        self.attempt = attempt
        self.message = message


@dataclass(frozen=True)
class Expected:
    """For which attempt, on which data, and the newest checkpoint known to be good."""

    attempt: int
    dataset_digest: str
    verified: ResumePoint | None


@dataclass
class Proposal:
    """What was found."""

    resume: ResumePoint | None = None
    rejected: list[RejectedCheckpoint] = field(default_factory=list)


class ResumeFinder:
    """Looks for the resume point of one attempt."""

    def __init__(
        self,
        store: ObjectStore,
        keys: JobKeys,
        cache: NodeCache,
        *,
        model_digest: str,
        on_existing: str,
        differences: Callable[[Manifest], str | None],
    ) -> None:
        """`differences`: why the job's program cannot go on from a checkpoint of its model, or None."""
        self._store = store
        self._keys = keys
        self._cache = cache
        self._model_digest = model_digest
        self._on_existing = on_existing
        self._differences = differences

    def precheck(self, attempt: int) -> None:
        """What can be refused before the data is known. Raises AttemptInStore, ResumeProblem, StoreError."""
        for step, _, prefix in self._located(self._candidates(self._own(attempt), attempt)):
            if step.committed:
                try:
                    self._require_same_run(read_manifest(self._store, prefix + MANIFEST_NAME), prefix)
                except Corrupt:
                    continue  # find() rejects it by name
                return

    def find(self, expected: Expected) -> Proposal:
        """List and verify candidates, newest first. Raises AttemptInStore, ResumeProblem, StoreError."""
        own = self._own(expected.attempt)
        candidates = self._candidates(own, expected.attempt)
        proposal = self._first_good(candidates, expected)
        known = expected.verified
        if known is not None and not any(uri == known.uri for _, uri, _ in self._located(candidates)):
            gone = RejectedCheckpoint(uri=known.uri, step=known.step, reason="ManifestMissing", file=MANIFEST_NAME)
            proposal.rejected.insert(0, gone)
        unplaced = [a for a in sorted(own.unplaced, reverse=True) if a < expected.attempt]
        if proposal.rejected or any(s.committed and a in unplaced for (a, _), s in own.steps.items()):
            proposal.rejected += [self._without_record(own, attempt) for attempt in unplaced]
        if proposal.resume is None and proposal.rejected:
            found = "; ".join(f"{r.uri}: {r.file}: {r.reason}" for r in proposal.rejected)
            raise ResumeProblem("AllCheckpointsCorrupt", f"checkpoints were committed and none verifies: {found}")
        return proposal

    def _own(self, attempt: int) -> Inventory:
        own = Inventory.read(self._store, self._keys)
        if own.newest_attempt >= attempt:
            place = self._keys.to_uri(self._keys.job_prefix)
            raise AttemptInStore(
                own.newest_attempt, f"attempt {own.newest_attempt} began in {place} before attempt {attempt}"
            )
        return own

    def _without_record(self, own: Inventory, attempt: int) -> RejectedCheckpoint:
        """An attempt whose checkpoints, if it has any, cannot be placed in the lineage."""
        newest = max((n for (a, n), s in own.steps.items() if a == attempt and s.committed), default=0)
        uri = self._keys.to_uri(resume_key(self._keys, attempt).removesuffix(RESUME_NAME))
        return RejectedCheckpoint(uri=uri, step=newest, reason=own.unplaced[attempt], file=RESUME_NAME)

    def _candidates(self, own: Inventory, attempt: int) -> list[StoredStep]:
        candidates = list(own.lineage(before_attempt=attempt))
        earlier = self._earlier_jobs()
        if earlier and self._on_existing == "refuse":
            names = ", ".join(i.keys.to_uri(i.keys.job_prefix) for i in earlier)
            raise ResumeProblem("CheckpointExists", f"checkpoints of an earlier job of this name exist: {names}")
        if not any(c.committed for c in candidates):
            for inventory in earlier:
                candidates += inventory.lineage()
            return candidates
        # When none of its own is good, the checkpoints that the job itself once resumed from may be.
        point = own.inherited(before_attempt=attempt)
        by_uid = {i.keys.uid: i for i in earlier}
        while point is not None:
            former = by_uid.pop(uid_of(self._keys, point) or "", None)
            if former is None:
                break
            candidates += former.lineage(from_point=point)
            point = former.inherited(from_point=point)
        return candidates

    def _earlier_jobs(self) -> list[Inventory]:
        """Other jobs that had this name and committed something, the one with the newest checkpoint first."""
        uids = [u for u in self._store.list_folders(self._keys.name_prefix) if u != self._keys.uid]
        inventories = [Inventory.read(self._store, replace(self._keys, uid=uid)) for uid in uids]
        dated = [
            (max((s.modified for s in i.steps.values() if s.committed and s.modified), default=None), i)
            for i in inventories
        ]
        oldest = datetime.min.replace(tzinfo=UTC)
        return [i for when, i in sorted(dated, key=lambda d: d[0] or oldest, reverse=True) if when is not None]

    def _first_good(self, candidates: list[StoredStep], expected: Expected) -> Proposal:
        proposal = Proposal()
        for step, uri, prefix in self._located(candidates):
            known = expected.verified is not None and uri == expected.verified.uri
            if not step.committed and not known:
                # Most often a save that its writer's end cut short, which never was a checkpoint.
                log.info("%s has no manifest and is passed over", uri)
                continue
            try:
                manifest = self._verify(step, prefix, expected.dataset_digest)
            except Corrupt as error:
                log.warning("%s is rejected: %s", uri, error)
                proposal.rejected.append(
                    RejectedCheckpoint(uri=uri, step=step.step, reason=error.reason, file=error.file)
                )
                continue
            proposal.resume = ResumePoint(
                uri=uri, manifest_digest=manifest.digest, step=step.step, attempt=step.attempt
            )
            break
        return proposal

    def _located(self, candidates: list[StoredStep]) -> Iterator[tuple[StoredStep, str, str]]:
        for step in candidates:
            keys = replace(self._keys, uid=step.uid)
            prefix = keys.step(step.attempt, step.step)
            yield step, keys.to_uri(prefix), prefix

    def _verify(self, step: StoredStep, prefix: str, dataset_digest: str) -> Manifest:
        """Raise Corrupt unless every byte of a checkpoint is what its manifest says; leaves it in the node's cache."""
        manifest = read_manifest(self._store, prefix + MANIFEST_NAME)
        if (manifest.job_uid, manifest.attempt, manifest.step) != (step.uid, step.attempt, step.step):
            raise Corrupt(
                "ManifestInvalid",
                MANIFEST_NAME,
                f"it is of job {manifest.job_uid} attempt {manifest.attempt} step {manifest.step}",
            )
        self._require_same_run(manifest, prefix)
        if manifest.dataset_digest != dataset_digest:
            raise ResumeProblem(
                "DatasetMismatch",
                f"{self._keys.to_uri(prefix)} was trained on data {manifest.dataset_digest}, this job's is "
                f"{dataset_digest}",
            )
        # Sizes first: a truncated or missing shard is found without reading gigabytes.
        for file in manifest.files:
            if file.path not in step.sizes:
                raise Corrupt("ShardMissing", file.path, "not in the store")
            if step.sizes[file.path] != file.bytes:
                raise Corrupt("SizeMismatch", file.path, f"{step.sizes[file.path]} bytes instead of {file.bytes}")
        self._cache.bring_checkpoint(self._store, prefix, manifest)
        return manifest

    def _require_same_run(self, manifest: Manifest, prefix: str) -> None:
        if manifest.model_digest != self._model_digest:
            raise ResumeProblem(
                "CheckpointOfAnotherModel",
                f"{self._keys.to_uri(prefix)} is of model {manifest.model_digest}, this job's is {self._model_digest}",
            )
        if (found := self._differences(manifest)) is not None:
            raise ResumeProblem("CheckpointOfOtherTraining", f"{self._keys.to_uri(prefix)}: {found}")
