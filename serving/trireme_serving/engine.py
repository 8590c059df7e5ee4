"""vLLM's server as a child process: its command line, what it says, and requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from trireme.protocol.serving import ServingConfig
from trireme_serving import guard
from trireme_serving.errors import EngineFailed, EngineRefused

KEPT_LINES = 400
REQUEST_SECONDS = 10.0
METRICS_SECONDS = 5.0
"""Below the ten seconds that Prometheus waits for a scrape."""
LOAD_SECONDS = 300.0
STOP_SECONDS = 20.0
_ERROR = re.compile(r"(?:^|\s)((?:[A-Za-z_]+\.)*[A-Za-z_]*(?:Error|Exception|Interrupt)\b: .+)$")
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) ")
"""Which of its processes a line of vLLM is from."""
_FOLLOW_UP = ("Engine core initialization failed", "EngineCore encountered", "EngineDeadError")
"""What vLLM's parent process says because a child had failed already."""


def arguments(config: ServingConfig, model: Path, address: str) -> list[str]:
    """vLLM's command line for a replica."""
    found = [
        f"--model={model}",
        f"--served-model-name={config.served_name}",
        f"--host={address}",
        f"--port={config.port}",
        f"--dtype={config.dtype}",
        f"--max-num-seqs={config.max_concurrency}",
        f"--tensor-parallel-size={config.devices}",
        "--load-format=safetensors",
        "--middleware=trireme_serving.guard.Guard",
        "--disable-uvicorn-access-log",
    ]
    if config.max_model_length is not None:
        found.append(f"--max-model-len={config.max_model_length}")
    if config.kv_cache_bytes is not None:
        found.append(f"--kv-cache-memory-bytes={config.kv_cache_bytes}")
    if config.chat_template is not None:
        found.append(f"--chat-template={config.chat_template}")
    if config.task == "embedding":
        found += ["--runner=pooling", "--convert=embed"]
    if config.adapter_room is not None:
        room = config.adapter_room
        found += ["--enable-lora", f"--max-loras={room.count}", f"--max-lora-rank={room.rank}"]
    if config.on_cpu:
        # Compiling takes minutes and a C++ compiler, and gains little on processors.
        found.append("--enforce-eager")
    # What comes last counts: arguments of the spec replace these defaults.
    return [*found, *config.extra_arguments]


def environment(inherited: Mapping[str, str], scratch: Path, token: str, config: ServingConfig) -> dict[str, str]:
    """What vLLM finds in its environment: nothing is fetched from anywhere, and nothing is told to anybody."""
    found = {
        **inherited,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(scratch / "vllm"),
        guard.TOKEN_ENV: token,
    }
    if config.on_cpu:
        # By itself each replica would bind its threads to the first cores, the same as every other on the computer.
        found.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if config.adapter_room is not None:
        found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return found


class Engine:
    """One run of vLLM's server."""

    def __init__(self, config: ServingConfig, model: Path, address: str, scratch: Path) -> None:
        self._config = config
        self._model = model
        self._address = address
        self._scratch = scratch
        self._token = secrets.token_hex(32)
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._reader: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Start the process; it does not answer yet."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            *arguments(self._config, self._model, self._address),
            env=environment(os.environ, self._scratch, self._token, self._config),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
            process_group=0,  # a signal to the program's group is the program's to pass on
        )
        self._reader = asyncio.create_task(self._read())
        headers = {guard.TOKEN_HEADER: self._token}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(headers=headers, trust_env=False)

    async def wait_healthy(self, deadline_seconds: float) -> None:
        """Until it answers. Raises EngineFailed when it ends before, or takes longer."""
        try:
            async with asyncio.timeout(deadline_seconds):
                while not await self.healthy():
                    if self._ended():
                        raise EngineFailed(await self.last_words())
                    await asyncio.sleep(0.5)
        except TimeoutError:
            message = f"vLLM did not answer within {deadline_seconds:.0f} s; it said last: {await self.last_words()}"
            raise EngineFailed(message) from None

    async def wait_ended(self) -> str:
        """Until the process ends by itself; what it said last."""
        assert self._process is not None
        code = await self._process.wait()
        return f"vLLM ended with code {code}: {await self.last_words()}"

    def _ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def healthy(self) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            await self._ask("GET", "/health", seconds=REQUEST_SECONDS)
        except EngineRefused:
            return False
        return True

    async def models(self) -> dict[str, str]:
        """Name -> directory of everything it serves, the model itself included. Raises EngineRefused."""
        answer = await self._ask("GET", "/v1/models", seconds=REQUEST_SECONDS)
        return {str(card["id"]): str(card.get("root", "")) for card in answer["data"]}

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Load an adapter, or have its name stand for another one from now on. Raises EngineRefused."""
        body = {"lora_name": name, "lora_path": str(directory), "load_inplace": True}
        await self._ask("POST", "/v1/load_lora_adapter", body, LOAD_SECONDS)

    async def unload_adapter(self, name: str) -> None:
        """Remove an adapter. Raises EngineRefused."""
        await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, REQUEST_SECONDS)

    async def metrics(self) -> str:
        """What it tells Prometheus. Raises EngineRefused."""
        return (await self._request("GET", "/metrics", None, METRICS_SECONDS))[1]

    async def in_flight(self, *, drain: bool = False) -> int:
        """Requests that are being answered; with `drain`, clients are told to go elsewhere. Raises EngineRefused."""
        answer = await self._ask("GET", guard.DRAIN if drain else guard.IN_FLIGHT, seconds=REQUEST_SECONDS)
        return int(answer["inFlight"])

    async def _ask(self, method: str, path: str, body: Any = None, seconds: float = 0.0) -> dict[str, Any]:
        content_type, text = await self._request(method, path, body, seconds)
        try:
            return json.loads(text) if content_type == "application/json" else {}
        except ValueError as error:
            raise EngineRefused(f"{path}: {error}") from error

    async def _request(self, method: str, path: str, body: Any, seconds: float) -> tuple[str, str]:
        """Type and text of an answer. Raises EngineRefused."""
        if self._session is None:
            raise EngineRefused("not started")
        host = f"[{self._address}]" if ":" in self._address else self._address
        url, timeout = f"http://{host}:{self._config.port}{path}", aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(method, url, json=body, timeout=timeout) as answer:
                text = await answer.text()
                if answer.status != 200:
                    raise EngineRefused(f"{path}: {answer.status}: {_message(text)}")
                return answer.content_type, text
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EngineRefused(f"{path}: {type(error).__name__}: {error}") from error

    async def stop(self) -> None:
        """End the process and all that it started."""
        process = self._process
        if process is not None:
            for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)  # its workers are of its group
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await process.wait()
        if self._reader is not None:
            self._reader.cancel()
        if self._session is not None:
            await self._session.close()

    async def last_words(self) -> str:
        """The error that ended it, else its last lines."""
        if self._reader is not None and self._ended():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await asyncio.shield(self._reader)
        return last_error(list(self._lines))

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the limit
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            print(text, flush=True)
            self._lines.append(text)


def last_error(lines: list[str]) -> str:
    """The exception that came first of those that follow from one another, else the last lines."""
    found = [_with_details(lines, n, match.group(1)) for n, line in enumerate(lines) if (match := _ERROR.search(line))]
    causes = [text for text in found if not any(word in text for word in _FOLLOW_UP)]
    return (causes or found or ["; ".join(lines[-3:]) or "nothing"])[-1][:1000]


def _with_details(lines: list[str], number: int, text: str) -> str:
    """An error with the lines in which pydantic says what is wrong, where it is one of these."""
    if "validation error" not in text:
        return text
    return "; ".join([text, *(_PREFIX.sub("", line).strip() for line in lines[number + 1 : number + 3])])


def _message(text: str) -> str:
    found = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', text)
    return (found.group(1) if found else text)[:500]
