"""One replica's life: fetch, check, start vLLM, load adapters, answer, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from trireme.protocol.serving import AdapterSource, LoadedAdapter, ModelSource, ReplicaReport, ReplicaState
from trireme_serving.adapters import AdapterKeeper
from trireme_serving.architectures import read_architectures
from trireme_serving.cache import Files, NodeCache
from trireme_serving.checks import check_model
from trireme_serving.engine import Engine
from trireme_serving.errors import EngineFailed, EngineRefused, Unusable
from trireme_serving.safetensors_file import Shapes
from trireme_serving.settings import Settings
from trireme_storage.fetch import Corrupt
from trireme_storage.store import StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Waits between tries to have the model; the last one is kept. Each try begins anew: the store may have been mended."""
ROUND_SECONDS = 1.0
LEAVE_SECONDS = 5.0
"""From SIGTERM on requests are still taken for this long: word that the pod goes takes a moment to reach all nodes."""
SICK_SECONDS = 60.0
"""A replica that was ready and whose vLLM does not answer for this long is started anew."""


class Replica:
    """The state that the report and the probes tell, and the task that moves it on."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._config = settings.config
        self._stopping = asyncio.Event()
        self._cache = NodeCache(settings.cache, self._config.store, self._stopping.is_set)
        self._state = ReplicaState.FETCHING
        self._reason = self._message = ""
        self._model: ModelSource | None = None
        self._keeper: AdapterKeeper | None = None
        self._adapters: list[LoadedAdapter] = []
        self._healthy_at = time.monotonic()
        self._was_ready = False
        self._engine: Engine | None = None
        self._stages: dict[str, float] = {}

    # -- what is told

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Duration of each stage of the last start, as far as it came."""
        return dict(self._stages)

    async def engine_metrics(self) -> str:
        """vLLM's own, as text. Raises EngineRefused."""
        if self._engine is None:
            raise EngineRefused("not started")
        return await self._engine.metrics()

    def report(self) -> ReplicaReport:
        """What the operator reads."""
        return ReplicaReport(
            service_uid=self._config.service.uid,
            revision=self._config.revision,
            state=self._state,
            reason=self._reason,
            message=self._message[:4000],
            model=self._model,
            adapters=self._adapters,
            refused=self._keeper.refused if self._keeper else [],
        )

    @property
    def started(self) -> bool:
        """Whether it is known how the start went: a kubelet must not restart what a restart does not cure."""
        return self._was_ready or self._state in (ReplicaState.READY, ReplicaState.FAILED, ReplicaState.DRAINING)

    @property
    def ready(self) -> bool:
        return self._state == ReplicaState.READY and time.monotonic() - self._healthy_at < SICK_SECONDS / 4

    @property
    def alive(self) -> bool:
        sick = self._was_ready and self._state == ReplicaState.READY
        return not sick or time.monotonic() - self._healthy_at < SICK_SECONDS

    # -- what happens

    def stop(self) -> None:
        """Drain and end."""
        self._stopping.set()

    async def run(self) -> int:
        """Until it is to stop, or vLLM ends after it had answered; the exit code."""
        tries = 0
        while not self._stopping.is_set():
            try:
                return await self._serve()
            except (Unusable, Corrupt) as error:
                self._fail(error.reason, str(error))
            except StoreError as error:
                self._fail(error.reason, error.message)
            except EngineFailed as error:
                self._fail("EngineFailed", str(error))
            except (OSError, ValueError) as error:
                self._fail("ModelUnreadable", f"{type(error).__name__}: {error}")
            await self._pause(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1
        return 0

    def _fail(self, reason: str, message: str) -> None:
        log.error("%s: %s", reason, message)
        self._state, self._reason, self._message = ReplicaState.FAILED, reason, message

    def _enter(self, state: ReplicaState) -> None:
        log.info("%s", state.value)
        if self._state != ReplicaState.FAILED or state == ReplicaState.READY:
            # A try that follows a failure tells of that one until it gets further: it is why nothing answers yet.
            self._state, self._reason, self._message = state, "", ""

    async def _serve(self) -> int:
        deadline = time.monotonic() + self._config.start_deadline_seconds
        self._stages = {}
        self._enter(ReplicaState.FETCHING)
        with self._timed("fetch"):
            files = await asyncio.to_thread(self._cache.bring, self._config.model)
        self._model = files.source
        self._enter(ReplicaState.CHECKING)
        with self._timed("check"):
            shapes = await asyncio.to_thread(check_model, files.directory, self._config, read_architectures())
        self._enter(ReplicaState.LOADING)
        engine = self._engine = Engine(self._config, files.directory, self._settings.address, self._settings.scratch)
        try:
            with self._timed("load"):
                await engine.start()
                await self._until_stopped(engine.wait_healthy(deadline - time.monotonic()))
            return await self._answer(engine, files, shapes) if not self._stopping.is_set() else 0
        finally:
            self._adapters, self._engine = [], None
            await engine.stop()

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """What ends without an exception is a stage of the start."""
        began = time.monotonic()
        yield
        self._stages[stage] = time.monotonic() - began

    async def _until_stopped(self, work: object) -> None:
        """Wait for some work, or for the order to stop. Raises what the work raises."""
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if task.done():
            return task.result()  # type: ignore[no-any-return]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _answer(self, engine: Engine, files: Files, shapes: Shapes) -> int:
        rank = self._config.adapter_room.rank if self._config.adapter_room else 0
        self._keeper = AdapterKeeper(engine, self._cache, files.source, shapes, rank)
        ended = asyncio.create_task(engine.wait_ended())
        health = asyncio.create_task(self._watch_health(engine))
        try:
            while not self._stopping.is_set():
                if ended.done():
                    self._fail("EngineEnded", ended.result())
                    return 1  # the kubelet starts the container anew, and the adapters are loaded again
                await self._round(engine, files)
                await self._pause(ROUND_SECONDS)
            await self._drain(engine, ended.done)
            return 0
        finally:
            ended.cancel()
            health.cancel()

    async def _watch_health(self, engine: Engine) -> None:
        """Beside the rounds: one that fetches an adapter may take minutes."""
        while True:
            if await engine.healthy():
                self._healthy_at = time.monotonic()
            await asyncio.sleep(ROUND_SECONDS)

    async def _round(self, engine: Engine, files: Files) -> None:
        """One look at vLLM and at what is wanted; the first that finds all adapters makes the replica ready."""
        assert self._keeper is not None
        try:
            if self._config.adapter_room is not None:
                self._adapters = await self._keeper.round(self._wanted(), self._config.served_name)
                self._cache.forget_except({files.directory, *self._keeper.directories})
        except EngineRefused as error:
            log.warning("vLLM: %s", error)
            return
        if self._state != ReplicaState.READY:
            self._healthy_at = time.monotonic()
            self._enter(ReplicaState.READY)
            self._was_ready = True

    def _wanted(self) -> list[AdapterSource]:
        try:
            return self._settings.wanted_adapters().adapters
        except (OSError, ValidationError) as error:
            raise EngineRefused(f"the list of adapters cannot be read: {error}") from error

    async def _drain(self, engine: Engine, ended: Callable[[], bool]) -> None:
        """Take what still comes for a moment, then finish what is being answered."""
        self._enter(ReplicaState.DRAINING)
        began = time.monotonic()
        while not ended():
            try:
                left = await engine.in_flight(drain=True)
            except EngineRefused as error:
                log.warning("draining: %s", error)
                left = 1
            waited = time.monotonic() - began
            if (left == 0 and waited >= LEAVE_SECONDS) or waited >= LEAVE_SECONDS + self._config.drain_seconds:
                log.info("drained after %.1f s, %d requests left", waited, left)
                return
            await asyncio.sleep(0.2)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
