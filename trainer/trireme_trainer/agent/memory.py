"""The kernel's count of processes it killed for memory in this container."""

from __future__ import annotations

from pathlib import Path


def _candidates() -> list[Path]:
    """Files that may hold the count: cgroup v2, then v1, of this process and of the namespace's root."""
    roots = [Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")]
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                roots.insert(0, Path(f"/sys/fs/cgroup{path}/memory.events"))
            elif "memory" in controllers.split(","):
                roots.append(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    except OSError:
        pass
    return roots


def count_oom_kills() -> int:
    """OOM kills so far; 0 where the kernel shows no count."""
    for path in _candidates():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdigit():
                return int(value)
    return 0
