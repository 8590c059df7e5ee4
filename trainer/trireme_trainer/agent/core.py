"""The agent of one pod: follows the operator's target and knows what to report."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from trireme.protocol import AgentState, Phase, Report, Target, supersedes
from trireme.protocol.messages import DRAINED_EXIT_CODE
from trireme_storage.store import ObjectStore
from trireme_trainer.agent.attempt import Attempt
from trireme_trainer.agent.environment import AgentEnvironment
from trireme_trainer.agent.errors import AttemptOver
from trireme_trainer.agent.fence import Fence
from trireme_trainer.agent.launcher import Launcher
from trireme_trainer.agent.messages import PeerState, SlotShards
from trireme_trainer.agent.preparation import Preparation
from trireme_trainer.agent.programs import find_program
from trireme_trainer.metrics.pod import PodMetrics

log = logging.getLogger(__name__)
SELF_DRAIN_SECONDS = 8.0
"""After SIGTERM: how long the operator has to ask for the drain before the agent asks by itself."""
REPORTED_SECONDS = 5.0
"""A terminating agent with nothing left to do stays this long for the operator to read its last report."""


class StaleTarget(Exception):
    """The target does not supersede the one held, or is another job's."""


class Agent:
    """State of one agent."""

    def __init__(self, environment: AgentEnvironment, metrics: PodMetrics) -> None:
        self.target: Target | None = None
        self.exit_code: int | None = None
        self._env = environment
        self._metrics = metrics
        metrics.ranks_alive(lambda: attempt.ranks.alive if (attempt := self._attempt) is not None else 0)
        self._store: ObjectStore | None = None
        self._program = find_program(environment.config.program)
        self._launcher = Launcher(environment.config.program, environment.threads_per_rank)
        self._fence = Fence(environment.config.slots, time.monotonic())
        self._attempt: Attempt | None = None
        self._preparation: Preparation | None = None
        self._stopping = False
        self._drained = False  # whether the last attempt ended by saving, as asked
        self._terminating_at: float | None = None
        self._finished_at: float | None = None
        self._reported_after_finish = False
        self._wake = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    # -- what others ask

    def heard_operator(self) -> None:
        """The operator called."""
        self._fence.heard_operator(time.monotonic())

    def apply(self, target: Target) -> None:
        """Take a target. Raises StaleTarget."""
        if target.job_uid != self._env.config.job.uid:
            raise StaleTarget(f"this agent serves job {self._env.config.job.uid}, not {target.job_uid}")
        if not supersedes(target, self.target):
            assert self.target is not None
            raise StaleTarget(
                f"holding attempt {self.target.attempt} {self.target.phase}, got {target.attempt} {target.phase}"
            )
        self.target = target
        self._wake.set()

    def peer_state(self) -> PeerState:
        """Answer to another slot's agent."""
        self._fence.heard_gang(time.monotonic())
        attempt = self._attempt
        return PeerState(
            job_uid=self._env.config.job.uid,
            slot=self._env.slot,
            attempt=self.target.attempt if self.target else 0,
            rendezvous_attempt=attempt.number if attempt else 0,
            rendezvous_port=attempt.rendezvous_port if attempt else 0,
            all_inputs_ready=attempt.all_inputs_ready if attempt else False,
        )

    def take_inputs_ready(self, slot: int, attempt: int) -> None:
        """Slot 0: another slot has the inputs of an attempt."""
        if self._attempt is not None and self._attempt.number == attempt:
            self._attempt.slots_ready.add(slot)

    def take_shards(self, message: SlotShards) -> None:
        """Slot 0: another slot's files of a checkpoint. Raises AttemptOver."""
        self._fence.heard_gang(time.monotonic())
        if self._attempt is None or message.job_uid != self._env.config.job.uid:
            raise AttemptOver("slot 0 runs no attempt")
        self._attempt.committer.shards(message)

    def terminate(self) -> None:
        """SIGTERM came: ask for a drain."""
        if self._terminating_at is None:
            log.info("SIGTERM: asking the operator for a drain")
            self._terminating_at = time.monotonic()
            self._wake.set()

    def report(self) -> Report:
        """What the operator is told."""
        now = time.monotonic()
        target, attempt = self.target, self._attempt
        preparation = self._preparation if self._is_current(self._preparation) else None
        report = Report(
            job_uid=self._env.config.job.uid,
            slot=self._env.slot,
            pod=self._env.pod_name,
            node=self._env.node_name,
            attempt=target.attempt if target else 0,
            phase=target.phase if target else None,
            state=self._state(),
            ranks_alive=0,
            inputs_problem=preparation.problem if preparation else None,
            proposal=preparation.proposal if preparation else None,
            terminating=self._terminating_at is not None,
            peers_lost_seconds=round(self._fence.gang_silent_seconds(now), 3) if attempt else 0.0,
        )
        if attempt is None:
            return report
        if self._of_older_attempt():
            # Nothing of an older attempt is told under the new one's number, except that it may still be alive:
            # something in flight to the store can still commit.
            return report.model_copy(update={"ranks_alive": max(1, attempt.ranks.alive)})
        failure = attempt.failure
        if failure is not None:
            failure = failure.model_copy(update={"seconds_ago": round(now - attempt.failed_at, 3)})
        self._reported_after_finish |= self._finished_at is not None
        return report.model_copy(
            update={
                "ranks_alive": max(attempt.ranks.alive, int(self._stopping)),
                "ranks": [r.report(now) for r in attempt.ranks.ranks],
                "progress": attempt.progress,
                "checkpoint": attempt.committer.report(),
                "failure": failure,
                "model": attempt.model if attempt.state is AgentState.SUCCEEDED else None,
                "seconds_by_category": {k: round(v, 3) for k, v in attempt.clock.totals(now).items()},
            }
        )

    def _is_current(self, preparation: Preparation | None) -> bool:
        return preparation is not None and self.target is not None and preparation.attempt == self.target.attempt

    def _of_older_attempt(self) -> bool:
        return self._attempt is not None and self.target is not None and self._attempt.number < self.target.attempt

    def _state(self) -> AgentState:
        if self._stopping or self._of_older_attempt():
            return AgentState.STOPPING
        if self._attempt is not None:
            return self._attempt.state
        if self._preparation is not None and self._is_current(self._preparation):
            return AgentState.PREPARED if self._preparation.settled else AgentState.PREPARING
        if self.target is not None and self.target.phase in (Phase.DRAIN, Phase.RELEASE):
            return AgentState.DRAINED
        return AgentState.IDLE

    # -- what it does

    async def drive(self) -> int:
        """Follow the target until the agent's work is over; its exit code."""
        await self._launcher.warm_up()
        while self.exit_code is None:
            self._wake.clear()
            try:
                await self._follow()
            except Exception:  # the agent must outlive any fault of one round; the operator sees no progress
                log.exception("following the target failed")
                await asyncio.sleep(1.0)
            self._follow_termination()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._wake.wait()
        await self._stop_all()
        return self.exit_code

    async def _follow(self) -> None:
        target = self.target
        if target is None:
            return
        if self._attempt is not None and self._attempt.number < target.attempt:
            await self._stop_attempt()
        if self._preparation is not None and (
            self._preparation.attempt < target.attempt or target.phase is not Phase.PREPARE
        ):
            preparation, self._preparation = self._preparation, None
            await preparation.stop()
        match target.phase:
            case Phase.PREPARE if self._env.slot == 0 and self._preparation is None:
                self._preparation = Preparation(
                    self._program.preparation, target, self._env.job_file, self._env.scratch
                )
            case Phase.RUN if self._attempt is None:
                self._fence = Fence(self._env.config.slots, time.monotonic())
                self._attempt = Attempt(
                    self._env, target, self._open_store(), self._fence, self._metrics, self._launcher
                )
            case Phase.RUN if self._attempt is not None:
                self._attempt.update(target)
            case Phase.DRAIN if self._attempt is not None:
                self._attempt.update(target)
                self._attempt.drain()
            case Phase.RELEASE:
                await self._stop_attempt()
                self.exit_code = 0

    def _follow_termination(self) -> None:
        """After SIGTERM: drain, by the operator's word or by our own, and leave when nothing is left to do."""
        if self._terminating_at is None:
            return
        now = time.monotonic()
        attempt = self._attempt
        if attempt is not None and attempt.state is AgentState.RUNNING:
            if now - self._terminating_at > SELF_DRAIN_SECONDS:
                attempt.drain()
            return
        if self._finished_at is None:
            self._finished_at = now
        if self._reported_after_finish or now - self._finished_at > REPORTED_SECONDS or attempt is None:
            drained = self._drained if attempt is None else attempt.state is AgentState.DRAINED
            self.exit_code = DRAINED_EXIT_CODE if drained else 0

    async def _stop_attempt(self) -> None:
        if self._attempt is None:
            return
        attempt, self._stopping = self._attempt, True
        try:
            await attempt.stop()
            self._drained = attempt.state is AgentState.DRAINED
            self._attempt = None
        finally:
            self._stopping = False
        # The next attempt does not wait for a log.
        closing = asyncio.create_task(attempt.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _stop_all(self) -> None:
        if self._preparation is not None:
            await self._preparation.stop()
        await self._stop_attempt()
        if self._closing:
            await asyncio.wait(self._closing)
        await self._launcher.close()

    def _open_store(self) -> ObjectStore:
        if self._store is None:
            self._store = ObjectStore(self._env.config.store)
        return self._store
