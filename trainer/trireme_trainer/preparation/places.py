"""Where a job's inputs lie: its part of the store, and the node's disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from trireme.checkpoints import JobKeys, parse_s3_uri
from trireme.protocol import DatasetRef, JobConfig
from trireme_storage.store import ObjectNotFound, ObjectStore
from trireme_trainer.checkpoint.fetch import NodeCache
from trireme_trainer.checkpoint.proposal import ResumeProblem
from trireme_trainer.data.dataset import INDEX_NAME, DatasetIndex
from trireme_trainer.data.prepare import store_dataset


class Places:
    """Of one job on this node."""

    def __init__(self, job: JobConfig, scratch: Path) -> None:
        self.store = ObjectStore(job.store)
        self.keys = JobKeys(job.store.uri, job.job.namespace, job.job.name, job.job.uid)
        self.cache = NodeCache(scratch / "cache")
        self._job = job
        self._scratch = scratch

    def claim(self) -> None:
        """Leave or check the owner marker; also proves that these credentials may write.

        Raises ResumeProblem, StoreError.
        """
        self.store.check_bucket()
        identity = self._job.job.model_dump(mode="json", by_alias=True)
        try:
            found = json.loads(self.store.get(self.keys.owner))
        except ObjectNotFound:
            self.store.put(self.keys.owner, json.dumps(identity, sort_keys=True).encode())
            return
        except ValueError:
            found = None
        if found != identity:
            message = f"{self.keys.to_uri(self.keys.owner)} names {found}, this is {identity}"
            raise ResumeProblem("StoreOwnedByAnotherJob", message)

    def dataset(self, recorded: DatasetRef | None, make: Callable[[Path], DatasetIndex]) -> DatasetRef:
        """The job's data set: the recorded one where it is stored, else made in a directory, and stored.

        Raises ResumeProblem when what was made is not what was recorded; StoreError, and what `make` raises.
        """
        if recorded is not None and self.store.exists(parse_s3_uri(recorded.uri)[1] + "/" + INDEX_NAME):
            return recorded
        directory = self._scratch / "preparation" / "dataset"
        dataset = store_dataset(self.store, self.keys, directory, make(directory))
        if recorded is not None and recorded.digest != dataset.digest:
            raise ResumeProblem(
                "DatasetMismatch", f"the prepared data is {dataset.digest}, the job was started with {recorded.digest}"
            )
        place = self.cache.dataset(dataset.digest)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            directory.rename(place)
        return dataset
