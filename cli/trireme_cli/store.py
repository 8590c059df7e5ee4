"""The object store of a job, opened with the credentials that its pods use, read through the user's own access."""

import os
from typing import Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from trireme.checkpoints import JobKeys
from trireme.loopback import is_loopback
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.jobs import Job, read_secret


class StoreError(Exception):
    """The object store could not be read; the message names the object."""


class JobStore:
    """Reads objects of one job."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        checkpoint = job.raw["spec"]["checkpoint"]
        environment = dict(os.environ)
        reference = (checkpoint.get("credentials") or {}).get("secretRef")
        if reference:
            environment |= read_secret(cluster, job.namespace, reference["name"])
        self.keys = JobKeys(checkpoint["uri"], job.namespace, job.name, job.uid)
        style: Literal["path", "auto"] = (
            "path" if checkpoint.get("pathStyle") or "AWS_ENDPOINT_URL_S3" in environment else "auto"
        )
        endpoint = checkpoint.get("endpoint") or environment.get("AWS_ENDPOINT_URL_S3")
        self._s3: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=checkpoint.get("region") or environment.get("AWS_REGION") or "us-east-1",
            aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
            aws_session_token=environment.get("AWS_SESSION_TOKEN"),
            config=Config(
                s3={"addressing_style": style},
                retries={"max_attempts": 3},
                connect_timeout=5,
                proxies={} if is_loopback(endpoint) else None,
            ),
        )

    def read(self, key: str) -> bytes:
        """The bytes of an object. Raises StoreError."""
        try:
            return bytes(self._s3.get_object(Bucket=self.keys.bucket, Key=key)["Body"].read())
        except (BotoCoreError, ClientError) as error:
            raise StoreError(f"{self.keys.to_uri(key)}: {error}") from error

    def list_keys(self, prefix: str) -> list[str]:
        """All keys with a prefix. Raises StoreError."""
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.keys.bucket, Prefix=prefix)
            return [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        except (BotoCoreError, ClientError) as error:
            raise StoreError(f"{self.keys.to_uri(prefix)}: {error}") from error


def open_store(cluster: Cluster, job: Job) -> JobStore:
    """The store of a job. Raises ClusterError when its credentials cannot be read."""
    try:
        return JobStore(cluster, job)
    except KeyError as error:
        raise ClusterError(422, f"job {job.name} names no object store: {error}") from error
