"""Static identities: bearer tokens in a file, as kube-apiserver's --token-auth-file reads them."""

from __future__ import annotations

import csv
import fcntl
import io
import secrets
from collections.abc import Sequence
from pathlib import Path

ADMIN_USER = "kubernetes-admin"
ADMIN_GROUP = "system:masters"
NODES_GROUP = "system:nodes"


def tokens_path(data_dir: Path) -> Path:
    """Where the tokens of a server with this data directory are."""
    return data_dir / "pki" / "tokens.csv"


def issue(data_dir: Path, user: str, groups: Sequence[str] = ()) -> str:
    """The token of a user, made when there is none yet; a running server takes it up at once.

    A node named N is user `system:node:N` in group `system:nodes`; group `system:masters` may do everything.
    """
    path = tokens_path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    with path.open("r+", newline="") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for row in csv.reader(handle):
            if row and row[1] == user and row[3].split(",") == list(groups or [""]):
                return row[0]
        token = secrets.token_urlsafe(32)
        line = io.StringIO()
        csv.writer(line).writerow([token, user, user, ",".join(groups)])
        handle.write(line.getvalue())
    return token


def load(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """(user, groups) by token."""
    if not path.exists():
        return {}
    with path.open(newline="") as handle:
        return {
            row[0]: (row[1], tuple(group for group in row[3].split(",") if group))
            for row in csv.reader(handle)
            if len(row) == 4
        }
