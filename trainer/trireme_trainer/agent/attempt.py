"""RUN on one node: inputs, ranks, checkpoints and export of one attempt, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from trireme.protocol import AgentState, Failure, FailureKind, ModelRef, Progress, Section, Target
from trireme.protocol.messages import DRAINED_EXIT_CODE
from trireme_storage.store import ObjectStore
from trireme_trainer.agent.accounting import CategoryClock, category_of
from trireme_trainer.agent.classify import RankEnd, first_cause
from trireme_trainer.agent.committer import CommitPlace, Committer
from trireme_trainer.agent.errors import PeerError
from trireme_trainer.agent.export import ModelNotStored, ModelUpload
from trireme_trainer.agent.history import SampleHistory, StepHistory
from trireme_trainer.agent.inputs import InputsFetcher, InputsLost, free_port
from trireme_trainer.agent.log_upload import LogUpload
from trireme_trainer.agent.memory import count_oom_kills
from trireme_trainer.agent.messages import (
    CheckpointState,
    Drain,
    ExportedEvent,
    FromRank,
    Inputs,
    NewSettings,
    PeerState,
    ProgressEvent,
    SamplesEvent,
    SavedEvent,
    SaveFailedEvent,
    SectionEvent,
)
from trireme_trainer.agent.peers import LeaderClient
from trireme_trainer.agent.programs import find_program
from trireme_trainer.agent.ranks import RankProcess, RankSet, RankStart
from trireme_trainer.agent.watch import HangWatch
from trireme_trainer.checkpoint.fetch import NodeCache
from trireme_trainer.disk import is_disk_failure

if TYPE_CHECKING:
    from trireme_trainer.agent.environment import AgentEnvironment
    from trireme_trainer.agent.fence import Fence
    from trireme_trainer.agent.launcher import Launcher
    from trireme_trainer.metrics.pod import PodMetrics

log = logging.getLogger(__name__)
TICK_SECONDS = 0.25
SETTLE_SECONDS = 0.7
"""After the first bad end: time for the other ranks' ends, so that the cause is chosen among all."""
LEADER_SECONDS = 2.0
LAST_LOGS_SECONDS = 15.0
GATE_SECONDS = 0.2


class Attempt:
    """One attempt on this node, from RUN to its end."""

    def __init__(
        self,
        environment: AgentEnvironment,
        target: Target,
        store: ObjectStore,
        fence: Fence,
        metrics: PodMetrics,
        launcher: Launcher,
    ) -> None:
        self.target = target
        self.number = target.attempt
        self.state = AgentState.RUNNING
        self.failure: Failure | None = None
        self.failed_at = 0.0
        self.model: ModelRef | None = None
        self.progress: Progress | None = None
        self.rendezvous_port = 0
        self.slots_ready: set[int] = set()
        """Slot 0: the slots that have their inputs."""
        self._released = False  # whether this node's ranks were given their inputs
        self.clock = CategoryClock(time.monotonic())
        self._env = environment
        self._store = store
        self._fence = fence
        self._metrics = metrics
        self._section: tuple[Section, float] | None = None
        """Where the first rank is, and since when."""
        self._keys = environment.keys
        self._root = environment.scratch / "attempts" / f"a{target.attempt}"
        self._history, self._samples = StepHistory(target.attempt), SampleHistory(target.attempt)
        self._leader = LeaderClient(target.hosts[0], environment.token, environment.pod_ip)
        self._drain_deadline: float | None = None
        self._oom_kills = count_oom_kills()
        self._exported: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="attempt")
        self._watch = HangWatch(time.monotonic())
        config, program = environment.config, find_program(environment.config.program)
        self._cache = NodeCache(environment.scratch / "cache")
        self._fetcher = InputsFetcher(
            store=store,
            keys=self._keys,
            cache=self._cache,
            target=target,
            slot=environment.slot,
            config=config.store,
            weights=program.weights(config),
            always_from_weights=program.always_from_weights,
        )
        self.committer = Committer(
            CommitPlace(self._keys, target.attempt, environment.slot, config.slots, config.ranks_per_slot),
            store,
            send_to_leader=self._leader.send_shards,
            on_change=self._tell_busy,
            on_failure=metrics.save_failed,
            retention=self._retention,
        )
        self.ranks = RankSet(
            RankStart(
                attempt=target.attempt,
                first_rank=environment.slot * config.ranks_per_slot,
                count=config.ranks_per_slot,
                world_size=config.world_size,
                directory=self._root,
            ),
            launcher,
            self._on_event,
        )
        self._logs = LogUpload(self.ranks, self._history, self._samples, store, self._keys)
        metrics.attempt(resumes=target.resume_from is not None)
        self._task = asyncio.create_task(self._run())
        self._contact = asyncio.create_task(self._contact_loop())

    # -- orders

    def update(self, target: Target) -> None:
        """Take changed settings."""
        if target.settings != self.target.settings:
            self.ranks.send(NewSettings(settings=target.settings))
        self.target = target

    def drain(self) -> None:
        """Have the ranks agree on a step, save and exit; once."""
        if self._drain_deadline is None:
            self._drain_deadline = time.monotonic() + self.target.settings.drain_seconds
            self.ranks.send(Drain())

    async def stop(self) -> None:
        """End everything of this attempt: afterwards it can neither compute nor commit."""
        self._fetcher.cancel()
        self._contact.cancel()
        if self._exported is not None:
            self._exported.cancel()
        if self.state is AgentState.RUNNING:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.gather(self.committer.cancel(), self.ranks.stop())
        restore_failed = self.failure is not None and self.failure.kind is FailureKind.RESTORE
        if restore_failed or (self._env.slot == 0 and not self._released):
            # Also where another node found the store's copy damaged: slot 0 must look at it, not at its own.
            self._cache.distrust_checkpoints()
        self.clock.stop(time.monotonic())
        await self._leader.close()

    async def close(self) -> None:
        """After stop(): bring the logs' last lines to the store, as long as it answers soon, and free the disk."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_LOGS_SECONDS):
                await self._logs.once()
        self._threads.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self._root / "saves", ignore_errors=True)

    # -- events

    def _on_event(self, rank: RankProcess, event: FromRank) -> None:
        now = time.monotonic()
        first = rank is self.ranks.ranks[0]
        match event:
            case SectionEvent(section=section, step=step) if first:
                self.clock.enter(category_of(section, step, self.target.recompute_until_step), now)
                if self._section is not None:
                    self._metrics.section(self._section[0], now - self._section[1])
                self._section = section, now
            case ProgressEvent(progress=progress):
                if first:
                    self.progress = progress
                    if self._env.slot == 0 and event.completed_at:
                        self._history.add(progress, event.completed_at)
                self._metrics.progress(rank.rank, event, first=first)
            case SavedEvent():
                self.committer.saved(rank.rank, event)
            case SaveFailedEvent():
                self.committer.save_failed(rank.rank, event)
            case SamplesEvent(samples=samples):
                self._samples.add(samples)
            case ExportedEvent() if self._exported is None:
                self._exported = asyncio.create_task(self._upload_model(event))

    def _tell_busy(self) -> None:
        if self._env.slot == 0 and self.ranks.ranks:
            self.ranks.ranks[0].send(CheckpointState(busy=self.committer.busy))
        self._metrics.checkpoints(self.committer.report())

    def _retention(self) -> tuple[int, list[tuple[int, int]]]:
        points = [p for p in (self.target.resume_from, self.target.verified) if p is not None]
        return self.target.settings.keep, [(p.attempt, p.step) for p in points]

    # -- life

    async def _run(self) -> None:
        logs = asyncio.create_task(self._logs.repeat())
        try:
            await self._start()
            await self._supervise()
        except InputsLost as error:
            named = type(error).__name__ if error.lasting else None  # an exception that comes twice ends the job
            failure = Failure(kind=FailureKind.RESTORE, rank=self._first_rank, step=0, message=str(error))
            await self._end(failure.model_copy(update={"exception": named}))
        except Exception as error:  # a fault of ours must end the attempt, not leave it running unwatched
            log.exception("attempt %d", self.number)
            kind = FailureKind.LOCAL_DISK if is_disk_failure(error) else FailureKind.EXIT
            await self._end(self._failure(kind, f"the agent failed: {type(error).__name__}: {error}"))
        finally:
            logs.cancel()
        self.clock.stop(time.monotonic())
        await self._logs.once()

    @property
    def _first_rank(self) -> int:
        return self._env.slot * self._env.config.ranks_per_slot

    async def _start(self) -> None:
        """Start the ranks while the inputs come in."""
        self._root.mkdir(parents=True, exist_ok=True)
        (self._root / "target.json").write_text(self.target.to_json())
        fetched = asyncio.create_task(self._inputs())
        port = await self._rendezvous()
        await self.ranks.start(
            {
                "MASTER_ADDR": self.target.hosts[0].address,
                "MASTER_PORT": str(port),
                "TRIREME_JOB_FILE": str(self._env.job_file),
                "TRIREME_TARGET_FILE": str(self._root / "target.json"),
                "TRIREME_SAVE_DIRECTORY": str(self._root / "saves"),
            }
        )
        if self._drain_deadline is not None:
            self.ranks.send(Drain())
        waiting = asyncio.ensure_future(self._first_bad_end())
        both: list[asyncio.Future[Any]] = [fetched, waiting]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            inputs: Inputs | None = fetched.result() if fetched.done() else None
        finally:
            waiting.cancel()
            fetched.cancel()
        if inputs is not None:
            # The limits of start and restore count from here: a download takes as long as it takes.
            for rank in self.ranks.ranks:
                rank.entered_at = time.monotonic()
            self.ranks.send(inputs)
            self._released = True
        else:
            self._fetcher.cancel()

    async def _inputs(self) -> Inputs:
        """This node's inputs, once every node has its own: restoring is collective, and waiting there is a hang."""
        patience = self.target.settings.start_timeout_seconds
        inputs = await self._fetched(patience)
        self.slots_ready.add(self._env.slot)
        heard_at = time.monotonic()
        while not self.all_inputs_ready:
            if self._env.slot != 0:
                with contextlib.suppress(PeerError):
                    state = await self._leader.state((self._env.slot, self.number))
                    heard_at = time.monotonic()
                    if state.rendezvous_attempt == self.number and state.all_inputs_ready:
                        break
                if time.monotonic() - heard_at > patience:
                    raise InputsLost(f"slot 0 did not answer for {patience} s while its inputs were awaited")
            await asyncio.sleep(GATE_SECONDS)
        return inputs

    async def _fetched(self, patience: float) -> Inputs:
        """What the fetcher brings. A disk or volume that answers no more holds its thread for ever, and no error."""
        fetching = asyncio.get_running_loop().run_in_executor(self._threads, self._fetcher.run)
        while not (await asyncio.wait([fetching], timeout=GATE_SECONDS))[0]:
            if time.monotonic() - self._fetcher.moved_at > patience:
                raise InputsLost(f"no byte of this node's inputs moved for {patience:.0f} s")
        return fetching.result()

    @property
    def all_inputs_ready(self) -> bool:
        """Slot 0: whether every slot has its inputs."""
        return len(self.slots_ready) == self._env.config.slots

    async def _rendezvous(self) -> int:
        """The port that rank 0 listens on: slot 0 picks a free one, the others ask for it."""
        if self._env.slot == 0:
            self.rendezvous_port = free_port()
            return self.rendezvous_port
        deadline = time.monotonic() + self.target.settings.start_timeout_seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(PeerError):
                state: PeerState = await self._leader.state()
                if state.rendezvous_attempt == self.number and state.rendezvous_port:
                    return state.rendezvous_port
            await asyncio.sleep(0.2)
        raise InputsLost(f"slot 0 opened no rendezvous in {self.target.settings.start_timeout_seconds} s")

    async def _first_bad_end(self) -> None:
        while all(end.clean for end in self.ranks.ends()):
            self.ranks.changed.clear()
            await self.ranks.changed.wait()

    async def _supervise(self) -> None:
        """Until the ranks' end is known and what they saved is in the store."""
        while self.state is AgentState.RUNNING:
            self.ranks.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self.ranks.changed.wait()
            now = time.monotonic()
            ends = self.ranks.ends()
            if self._fence.expired(now, self.target.settings.fence_seconds):
                await self._fenced()
            elif any(not end.clean for end in ends):
                await self._settle()
            elif self.ranks.ended:
                self._conclude(ends, now)
            elif self._drain_deadline is not None and now > self._drain_deadline:
                await self._end(self._failure(FailureKind.HANG, "did not save and exit in the time given to drain"))
            elif hang := self._watch.look(self.ranks.ranks, self.target.settings, now):
                await self._end(hang)

    async def _settle(self) -> None:
        """A rank ended badly: let the others' ends come in, end the rest, choose the cause."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while not self.ranks.ended:
                    self.ranks.changed.clear()
                    await self.ranks.changed.wait()
        ends: list[RankEnd] = self.ranks.ends()
        await self.ranks.stop(term_seconds=0.0)
        cause = first_cause(ends, oom_kills=count_oom_kills() - self._oom_kills)
        assert cause is not None
        self._fail(cause[0], at=cause[1])

    async def _fenced(self) -> None:
        silent = self.target.settings.fence_seconds
        log.error("neither operator nor gang heard for %s s: stopping the ranks", silent)
        failure = self._failure(FailureKind.FENCED, f"no contact with operator and gang for {silent} s")
        await self.committer.cancel()
        await self._end(failure)

    async def _end(self, failure: Failure) -> None:
        """End the ranks, then say why: a report of the failure means that none is alive."""
        at = time.monotonic()
        await self.ranks.stop(term_seconds=0.0)
        self._fail(failure, at=at)

    def _conclude(self, ends: list[RankEnd], now: float) -> None:
        """All ranks ended as asked: what is left is to get their files into the store."""
        drained = any(end.return_code == DRAINED_EXIT_CODE for end in ends)
        if drained and self._drain_deadline is None:
            # Asked by another slot's agent.
            self._drain_deadline = now + self.target.settings.drain_seconds
        if self.committer.pending and not (drained and self._drain_deadline and now > self._drain_deadline):
            return
        if drained:
            self.state = AgentState.DRAINED
        elif self._env.slot != 0 or self.model is not None:
            self.state = AgentState.SUCCEEDED
        elif self._exported is None:
            self._fail(self._failure(FailureKind.EXIT, "rank 0 ended without exporting the model"))

    def _failure(self, kind: FailureKind, message: str) -> Failure:
        rank = next((r for r in self.ranks.ranks if r.alive), None)
        number = rank.rank if rank else self._first_rank
        return Failure(kind=kind, rank=number, step=rank.step if rank else 0, message=message)

    def _fail(self, failure: Failure, at: float | None = None) -> None:
        log.error("attempt %d failed: %s: rank %d: %s", self.number, failure.kind, failure.rank, failure.message)
        self.failure = failure
        self.failed_at = time.monotonic() if at is None else at
        self.state = AgentState.FAILED

    # -- loops

    async def _contact_loop(self) -> None:
        """Keep in touch with slot 0, which counts our calls as its own contact, for as long as we may commit."""
        while True:
            if self._env.slot != 0:
                try:
                    await self._leader.state()
                    self._fence.heard_gang(time.monotonic())
                except PeerError as error:
                    log.debug("%s", error)
            ended = self.state is not AgentState.RUNNING
            if ended and self._fence.expired(time.monotonic(), self.target.settings.fence_seconds):
                await self.committer.cancel()
            await asyncio.sleep(LEADER_SECONDS)

    async def _upload_model(self, event: ExportedEvent) -> None:
        upload = ModelUpload(event, self._store, self._keys, self.number)
        try:
            self.model = await upload.run(self._threads, lambda: self.state is AgentState.RUNNING)
        except ModelNotStored as error:
            await self._end(self._failure(FailureKind.EXIT, str(error)))
