"""Leader election by a Lease (coordination.k8s.io/v1), with the semantics of client-go's leaderelection.

A leader stops acting when it could not renew for `renew_deadline` by its own monotonic clock; others take over only
after they themselves saw the Lease unchanged for `lease_seconds`. No clocks are compared between machines. A leader
that was stopped (SIGSTOP) finds its time run out when it continues. Leadership makes collisions rare; correctness
does not rest on it (see the preconditions of every write).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from trireme_operator.apply.api import Api, ApiError, JsonObject, path_of
from trireme_operator.metrics import INSTRUMENTS

log = logging.getLogger(__name__)


class Leader:
    """Takes part in the election until cancelled."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        lease_seconds: float,
        renew_deadline_seconds: float,
        retry_seconds: float,
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self._api = api
        self._collection = path_of("coordination.k8s.io", "v1", "leases", namespace)
        self._path = path_of("coordination.k8s.io", "v1", "leases", namespace, name)
        self._namespace, self._name, self.identity = namespace, name, identity
        self._lease, self._deadline, self._retry = lease_seconds, renew_deadline_seconds, retry_seconds
        self._on_start, self._on_stop = on_start, on_stop
        self._valid_until = 0.0
        self._acting = False
        self._seen: tuple[str, float] = ("", 0.0)  # resourceVersion of the Lease, and since when it is that
        self._last_answer: float | None = None  # None: it takes no part yet

    def leading(self) -> bool:
        """Whether this process may act now."""
        return self._acting and time.monotonic() < self._valid_until

    def problem(self) -> str:
        """That the API server has not answered for several of the lease's durations; "" otherwise.

        Before it takes part, as long as the CRDs are waited for, nothing would come of a restart.
        """
        if self._last_answer is None:
            return ""
        silent = time.monotonic() - self._last_answer
        return f"no answer from the API server for {silent:.0f} s" if silent > 4 * self._lease else ""

    async def run(self) -> None:
        """Take part for ever; gives the Lease back when cancelled."""
        self._last_answer = time.monotonic()
        try:
            while True:
                await self._round()
                await asyncio.sleep(self._retry)
        finally:
            if self.leading():
                await self._release()

    async def _round(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline):
                won = await self._try()
            self._last_answer = time.monotonic()
        except (ApiError, TimeoutError) as error:
            log.warning("lease %s/%s: %s", self._namespace, self._name, error or "no answer")
            won = None
        if won:
            lapsed = self._acting and began >= self._valid_until
            self._valid_until = began + self._deadline
            if lapsed:
                self._stop()  # it ran out while this process did not run; begin anew
            if not self._acting:
                self._acting = True
                INSTRUMENTS.leader.set(1)
                log.info("leading as %s", self.identity)
                self._on_start()
        elif self._acting and (won is False or time.monotonic() >= self._valid_until):
            self._stop()

    def _stop(self) -> None:
        self._acting = False
        INSTRUMENTS.leader.set(0)
        log.warning("no longer leading")
        self._on_stop()

    async def _try(self) -> bool:
        """Get or renew the Lease; whether it is ours."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        try:
            lease = await self._api.get(self._path)
        except ApiError as error:
            if error.status != 404:
                raise
            return await self._create(now)
        spec = lease.get("spec") or {}
        holder, version = spec.get("holderIdentity") or "", lease["metadata"]["resourceVersion"]
        if holder not in ("", self.identity):
            if version != self._seen[0]:
                self._seen = (version, time.monotonic())
            waited = time.monotonic() - self._seen[1]
            if waited < float(spec.get("leaseDurationSeconds") or self._lease):
                return False
        transitions = int(spec.get("leaseTransitions") or 0)
        acquired = spec.get("acquireTime") if holder == self.identity else now
        if holder != self.identity:
            transitions += 1
        lease["spec"] = self._spec(acquired or now, now, transitions)
        return await self._write(lease)

    def _spec(self, acquired: str, renewed: str, transitions: int) -> JsonObject:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._lease)),
            "acquireTime": acquired,
            "renewTime": renewed,
            "leaseTransitions": transitions,
        }

    async def _create(self, now: str) -> bool:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec(now, now, 0),
        }
        try:
            await self._api.create(self._collection, body)
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    async def _write(self, lease: JsonObject) -> bool:
        try:
            await self._api.replace(self._path, lease)
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    async def _release(self) -> None:
        try:
            lease = await self._api.get(self._path)
            if (lease.get("spec") or {}).get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._api.replace(self._path, lease)
        except ApiError as error:
            log.warning("lease %s/%s was not given back: %s", self._namespace, self._name, error)
