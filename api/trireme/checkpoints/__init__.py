"""The checkpoint manifest and the key layout in the object store. Only a manifest makes a checkpoint exist."""

from trireme.checkpoints.keys import JobKeys, parse_s3_uri, parse_step_key
from trireme.checkpoints.manifest import FORMAT, Manifest, ManifestError, ShardFile, digest_bytes

__all__ = [
    "FORMAT",
    "JobKeys",
    "Manifest",
    "ManifestError",
    "ShardFile",
    "digest_bytes",
    "parse_s3_uri",
    "parse_step_key",
]
