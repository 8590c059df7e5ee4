"""The object store as the trainer uses it: bounded time-outs and retries, and errors that carry a reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from trireme.checkpoints import parse_s3_uri
from trireme.loopback import is_loopback
from trireme.protocol import StoreConfig
from trireme_storage.credentials import signed_in_session

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1024 * 1024
CHUNK_BYTES = 4 * MIB
# Eight parts in flight saturate a node's link to most object stores without holding more than 128 MiB in memory.
TRANSFER = TransferConfig(multipart_threshold=16 * MIB, multipart_chunksize=16 * MIB, max_concurrency=8)


class StoreError(Exception):
    """An operation on the object store failed; `reason` is the condition reason it leads to."""

    def __init__(self, reason: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


class ObjectNotFound(StoreError):
    """The key does not exist."""

    def __init__(self, uri: str) -> None:
        super().__init__("ObjectNotFound", f"{uri} does not exist", retryable=False)


@dataclass(frozen=True)
class StoredObject:
    """One entry of a listing."""

    key: str
    bytes: int
    modified: datetime


_DENIED = {
    "403",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AllAccessDisabled",
    "AccountProblem",
}


def map_error(error: Exception, uri: str) -> StoreError:
    """The StoreError for what boto3 raised while working on `uri`."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        text = f"{uri}: {code}: {error.response.get('Error', {}).get('Message', '')}".rstrip(": ")
        if code == "NoSuchBucket":
            # A bucket may be made after the job; the job waits for it.
            return StoreError("BucketNotFound", f"bucket of {uri} does not exist", retryable=True)
        if code in ("NoSuchKey", "404", "NotFound") or status == 404:
            return ObjectNotFound(uri)
        if code in _DENIED or status in (401, 403):
            return StoreError("AccessDenied", f"access denied to {text}", retryable=True)
        if code in ("InvalidBucketName", "NoSuchUpload", "EntityTooLarge", "MethodNotAllowed"):
            return StoreError("StoreRefused", text, retryable=False)
        return StoreError("StoreUnavailable", text, retryable=True)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError("CredentialsMissing", f"{uri}: no credentials: {error}", retryable=True)
    return StoreError("StoreUnavailable", f"{uri}: {type(error).__name__}: {error}", retryable=True)


class ObjectStore:
    """Objects under one bucket. Thread-safe, as boto3's clients are.

    Every method raises StoreError (ObjectNotFound for a missing key) and nothing else for the store's failures.
    """

    def __init__(self, config: StoreConfig, *, uri: str | None = None) -> None:
        """A client for the bucket of `uri` (default: the job's) with the pod's credentials."""
        self.uri = uri or config.uri
        self.bucket = parse_s3_uri(self.uri)[0]
        self._client: S3Client = signed_in_session().client(
            "s3",
            endpoint_url=config.endpoint,
            region_name=config.region or os.environ.get("AWS_REGION") or "us-east-1",
            verify=os.environ.get("AWS_CA_BUNDLE") or config.ca_bundle_file,
            config=Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=32,
                proxies={} if is_loopback(config.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3")) else None,
                # Servers other than AWS refuse the trailing checksums that newer SDKs add; manifests carry SHA-256.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if config.path_style else "auto"},
            ),
        )

    @contextmanager
    def _mapped(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (ClientError, BotoCoreError, boto3.exceptions.Boto3Error) as error:
            cause = error.__cause__ or error.__context__
            inner = cause if isinstance(cause, ClientError | BotoCoreError) else error
            raise map_error(inner, f"s3://{self.bucket}/{key}") from error

    def check_bucket(self) -> None:
        """Raise unless the bucket exists and these credentials may use it."""
        try:
            with self._mapped(""):
                self._client.head_bucket(Bucket=self.bucket)
        except ObjectNotFound as error:
            message = f"bucket s3://{self.bucket} does not exist"
            raise StoreError("BucketNotFound", message, retryable=True) from error

    def put(self, key: str, data: bytes) -> None:
        """Store some bytes."""
        with self._mapped(key):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str, *, limit_bytes: int = 64 * MIB) -> bytes:
        """All bytes of a small object."""
        with self._mapped(key):
            response = self._client.get_object(Bucket=self.bucket, Key=key)
            if response["ContentLength"] > limit_bytes:
                message = f"s3://{self.bucket}/{key}: {response['ContentLength']} bytes, expected at most {limit_bytes}"
                raise StoreError("StoreRefused", message, retryable=False)
            return response["Body"].read()

    def exists(self, key: str) -> bool:
        """Whether the key is there."""
        try:
            self.size_bytes(key)
        except ObjectNotFound:
            return False
        return True

    def size_bytes(self, key: str) -> int:
        """Size of an object."""
        with self._mapped(key):
            return self._client.head_object(Bucket=self.bucket, Key=key)["ContentLength"]

    def entries(self, prefix: str) -> Iterator[StoredObject]:
        """All objects under a prefix, in key order."""
        with self._mapped(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield StoredObject(entry["Key"], entry["Size"], entry["LastModified"])

    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders directly under a prefix that ends in a slash."""
        names: list[str] = []
        with self._mapped(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="/"
            )
            for page in pages:
                names += [p["Prefix"][len(prefix) :].rstrip("/") for p in page.get("CommonPrefixes", [])]
        return names

    def upload(self, path: Path, key: str) -> None:
        """Store a file in parallel parts."""
        with self._mapped(key):
            self._client.upload_file(str(path), self.bucket, key, Config=TRANSFER)

    def download(self, key: str, path: Path, *, cancelled: Callable[[], bool] = lambda: False) -> tuple[int, str]:
        """Fetch an object to a file, hashing as it streams: (size in bytes, SHA-256 as hex)."""
        digest, size = hashlib.sha256(), 0
        with self._mapped(key):
            body: Any = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    if cancelled():
                        raise StoreError("Cancelled", f"download of {key} was cancelled", retryable=True)
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
        return size, digest.hexdigest()

    def download_parts(self, key: str, path: Path, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Fetch a large object to a file in parallel parts; a part whose stream breaks is asked for again."""

        def look(_: int) -> None:
            if cancelled():
                raise StoreError("Cancelled", f"download of {key} was cancelled", retryable=True)

        path.parent.mkdir(parents=True, exist_ok=True)
        with self._mapped(key):
            self._client.download_file(self.bucket, key, str(path), Config=TRANSFER, Callback=look)

    def delete(self, keys: list[str]) -> None:
        """Remove objects; a missing one is no error."""
        for start in range(0, len(keys), 1000):
            batch = keys[start : start + 1000]
            with self._mapped(batch[0]):
                result = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            for failed in result.get("Errors", []):
                message = f"s3://{self.bucket}/{failed.get('Key')}: {failed.get('Code')}: {failed.get('Message')}"
                raise StoreError("StoreUnavailable", message, retryable=True)


def hash_file(path: Path, cancelled: Callable[[], bool] = lambda: False) -> tuple[int, str]:
    """(size in bytes, SHA-256 as hex) of a local file. Raises StoreError when it is cancelled on the way."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if cancelled():
                raise StoreError("Cancelled", f"hashing of {path} was cancelled", retryable=True)
        return file.tell(), digest.hexdigest()
