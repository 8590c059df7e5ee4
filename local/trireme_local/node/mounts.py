"""Container paths on a host without containers: text that names a mount path is rewritten to the host's path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

TMP_PATH = "/tmp"
"""The host's own files may lie below it (a checkout, a test's directory), so paths there are left as they are:
TMPDIR leads to the pod's own directory for temporary files."""


class MountTable:
    """Rewrites every path below a mount to where it lies on the host.

    A mount path is recognised where a path can begin (at the start of the text, or after a blank,
    a quote, `file://`, `=`, `:`, `,`, `(`, `>`, `<`, `|`, `;`, `&` or `[`) and where it ends at a component's
    boundary, so /data matches "/data/x" and "--dir=/data" but not "/database" or "s3://bucket/data".
    """

    def __init__(self, mounts: Mapping[str, Path]) -> None:
        self.mounts = {path.rstrip("/") or "/": host for path, host in mounts.items()}
        longest_first = sorted(self.mounts, key=len, reverse=True)
        names = "|".join(re.escape(path) for path in longest_first)
        self._pattern = (
            re.compile(rf"(?:(?<=file://)|(?<![^\s'\"=,(><|;&\[:]))({names})(?=$|[/\s'\":,;)><|&\]])")
            if longest_first
            else None
        )

    def rewrite(self, text: str) -> str:
        """`text` with every mount path in it replaced by its host path."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: str(self.mounts[match.group(1)]), text)

    def host_path(self, path: str) -> Path | None:
        """Host path of a container path, None when no mount holds it."""
        rewritten = self.rewrite(path)
        return Path(rewritten) if rewritten != path else None
