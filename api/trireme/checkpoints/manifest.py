"""The manifest: the sizes and SHA-256 of all files of a checkpoint (or exported model), put last by rank 0."""

import hashlib
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError

from trireme.protocol.base import WireModel
from trireme.protocol.messages import ResumePoint

FORMAT = "trireme.dev/checkpoint/v1"


class ManifestError(ValueError):
    """The bytes are no manifest of this format."""


def digest_bytes(data: bytes) -> str:
    """sha256:<hex> of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class ShardFile(WireModel):
    """One file."""

    path: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$", max_length=512)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rank: int = Field(default=0, ge=0)


class AttemptStart(WireModel):
    """Where an attempt started."""

    resume_from: ResumePoint | None = Field(default=None, description="Absent: at step 0.")


class Manifest(WireModel):
    """What a committed checkpoint consists of."""

    format: str = FORMAT
    job_uid: str
    attempt: int
    step: int
    tokens: int
    model_digest: str = Field(description="Of the architecture: a checkpoint of another model is refused.")
    dataset_digest: str = Field(description="Resume refuses another data set.")
    layout: dict[str, int] = Field(description="tensor, pipeline, data, context sizes at the time of the save.")
    files: list[ShardFile]
    state: dict[str, Any] = Field(default_factory=dict, description="Small JSON state: counters, first loss, ...")
    dataset_uri: str = ""
    began: AttemptStart | None = Field(
        default=None, description="Where the attempt that saved it started; absent in manifests written before."
    )
    _read_digest: str | None = PrivateAttr(default=None)

    def encode(self) -> bytes:
        """The bytes to store, whose digest is recorded."""
        return self.to_json().encode()

    @property
    def digest(self) -> str:
        """Of the stored bytes: a newer writer's may hold more than this version would encode."""
        return self._read_digest or digest_bytes(self.encode())

    @property
    def total_bytes(self) -> int:
        return sum(f.bytes for f in self.files)

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """Parse stored bytes. Raises ManifestError."""
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            raise ManifestError(f"not a checkpoint manifest: {error.error_count()} invalid fields") from error
        if manifest.format != FORMAT:
            raise ManifestError(f"manifest format is {manifest.format!r}, expected {FORMAT!r}")
        manifest._read_digest = digest_bytes(data)
        return manifest
