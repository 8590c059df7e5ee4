"""The manifest's digest."""

import json

from trireme.checkpoints import Manifest, digest_bytes


def test_a_manifest_that_was_read_keeps_the_digest_of_its_bytes_although_a_newer_writer_added_fields() -> None:
    written = Manifest(
        job_uid="uid", attempt=1, step=10, tokens=1, model_digest="m", dataset_digest="d", layout={}, files=[]
    )
    assert Manifest.decode(written.encode()).digest == written.digest
    newer = json.dumps({**json.loads(written.encode()), "addedLater": 1}).encode()
    assert Manifest.decode(newer).digest == digest_bytes(newer) != written.digest
