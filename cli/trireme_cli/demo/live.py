"""The demo's live line: whole on a terminal of any width, and a plain line now and then elsewhere."""

import textwrap
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trireme.protocol import Progress
from trireme.resources.status import JobStatus

PLAIN_LINE_SECONDS = 5.0
NO_BREAK = "\u00a0"


def describe(status: JobStatus, progress: Progress | None, step: int, now: float) -> list[str]:
    """The parts of the line; `now` is in seconds since the start."""
    total = progress.total_steps if progress else (status.progress.total_steps if status.progress else 0)
    parts = [f"{now:5.0f} s", f"{status.state:<10}", f"step {step}/{total or '?'}"]
    if progress is not None and progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
        if progress.tokens_per_second:
            parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
        if progress.tflops_per_device:
            parts.append(f"{progress.tflops_per_device * 1000:.1f} GFLOP/s/device")
        if progress.mfu is not None:
            parts.append(f"MFU {progress.mfu:.0%} ({progress.mfu_basis})")
        if progress.step_seconds and total:
            parts.append(f"ETA {(total - step) * progress.step_seconds:.0f} s")
    parts.append(f"restarts {status.restarts.total}")
    return parts


class LiveLine:
    """A context: what is printed on the console within it stays above the line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
        self._last_plain_line = float("-inf")
        self._last_state = ""

    def __enter__(self) -> "LiveLine":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, parts: list[str], state: str, now: float) -> None:
        """Replace the line, broken between its parts; where there is no terminal, print it if it is time to."""
        if self._console.is_terminal:
            line = " | ".join(part.replace(" ", NO_BREAK) for part in parts)
            text = textwrap.fill(line, self._console.width).replace(NO_BREAK, " ")
            self._live.update(Text(text), refresh=True)
        elif now - self._last_plain_line >= PLAIN_LINE_SECONDS or state != self._last_state:
            self._console.print(" | ".join(parts), markup=False, soft_wrap=True)
            self._last_plain_line = now
        self._last_state = state
