"""Keys of a job in the object store.

    <prefix>/<namespace>/<name>/<job-uid>/owner.json
    <prefix>/<namespace>/<name>/<job-uid>/data/<digest>/...
    <prefix>/<namespace>/<name>/<job-uid>/a<attempt>/step-<n>/<shards>, manifest.json (last)
    <prefix>/<namespace>/<name>/<job-uid>/model/a<attempt>/<files>, manifest.json (last)
    <prefix>/<namespace>/<name>/<job-uid>/logs/a<attempt>/rank-<r>.log
    <prefix>/<namespace>/<name>/<job-uid>/history/a<attempt>/<segment>.jsonl
    <prefix>/<namespace>/<name>/<job-uid>/samples/a<attempt>/<segment>.jsonl

An attempt writes only under its own a<attempt>, so two writers never collide.
"""

import re
from dataclasses import dataclass

MANIFEST_NAME = "manifest.json"
OWNER_NAME = "owner.json"
_STEP = re.compile(r"/(?P<uid>[^/]+)/a(?P<attempt>\d+)/step-(?P<step>\d+)/manifest\.json$")


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Split s3://bucket/prefix into (bucket, prefix without slashes at its ends).

    Raises ValueError when it is no such URI.
    """
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", uri)
    if match is None:
        raise ValueError(f"not an s3:// URI: {uri!r}")
    return match.group(1), (match.group(2) or "").strip("/")


def parse_step_key(key: str) -> tuple[str, int, int] | None:
    """(job uid, attempt, step) of a manifest's key, or None for any other key."""
    match = _STEP.search("/" + key)
    return (match["uid"], int(match["attempt"]), int(match["step"])) if match else None


@dataclass(frozen=True)
class JobKeys:
    """The key layout of one job. All keys are without the bucket."""

    uri: str
    namespace: str
    name: str
    uid: str

    @property
    def bucket(self) -> str:
        return parse_s3_uri(self.uri)[0]

    @property
    def name_prefix(self) -> str:
        """Of all jobs, over time, that had this namespace and name; ends in a slash."""
        prefix = parse_s3_uri(self.uri)[1]
        return "/".join(p for p in (prefix, self.namespace, self.name) if p) + "/"

    @property
    def job_prefix(self) -> str:
        return f"{self.name_prefix}{self.uid}/"

    @property
    def owner(self) -> str:
        return self.job_prefix + OWNER_NAME

    def step(self, attempt: int, step: int) -> str:
        """Prefix of one checkpoint; ends in a slash."""
        return f"{self.job_prefix}a{attempt}/step-{step}/"

    def manifest(self, attempt: int, step: int) -> str:
        return self.step(attempt, step) + MANIFEST_NAME

    def dataset(self, digest: str) -> str:
        return f"{self.job_prefix}data/{digest.removeprefix('sha256:')}/"

    def model(self, attempt: int) -> str:
        return f"{self.job_prefix}model/a{attempt}/"

    def log(self, attempt: int, rank: int) -> str:
        return f"{self.job_prefix}logs/a{attempt}/rank-{rank}.log"

    @property
    def histories(self) -> str:
        """Prefix of the step records of all attempts; ends in a slash."""
        return f"{self.job_prefix}history/"

    def history(self, attempt: int, segment: int) -> str:
        return f"{self.histories}a{attempt}/{segment:06d}.jsonl"

    @property
    def all_samples(self) -> str:
        """Prefix of the samples of all attempts; ends in a slash."""
        return f"{self.job_prefix}samples/"

    def samples(self, attempt: int, segment: int) -> str:
        return f"{self.all_samples}a{attempt}/{segment:06d}.jsonl"

    def to_uri(self, key: str) -> str:
        """s3://bucket/key without a slash at its end."""
        return f"s3://{self.bucket}/{key}".rstrip("/")
