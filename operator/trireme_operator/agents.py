"""Talking to agents: GET /v1/report and PUT /v1/target, with the job's bearer token, bounded and timed."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import aiohttp
from pydantic import ValidationError

from trireme.protocol import Report, compatible
from trireme.protocol.messages import PROTOCOL_VERSION
from trireme_operator.build import agent_token
from trireme_operator.decide import KEY_REFUSED, Contact, PutTarget
from trireme_operator.metrics import INSTRUMENTS

log = logging.getLogger(__name__)

AGENT_PORT = 7070
CONNECT_SECONDS = 2.0
"""A dead machine answers nothing at all; a living one accepts at once, however busy it is."""
SUSPECTS_AT_ONCE = 16
RETRY_SECONDS = 2.0
"""Between two tries to tell an agent that did not take its target."""


class KeyRefused(Exception):
    """An agent answers 401 to the token under every key."""


class AgentClient:
    """Keeps what is known of every agent, by the UID of its pod."""

    def __init__(self, keys: Sequence[bytes], timeout_seconds: float, concurrency: int) -> None:
        self._keys = keys
        self._accepted: dict[str, bytes] = {}  # by pod UID; for the life of the pod
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=min(CONNECT_SECONDS, timeout_seconds))
        # Who does not answer waits for its time-outs among its like, so that dead machines delay no one else.
        self._gates = {(method, False): asyncio.Semaphore(concurrency) for method in ("GET", "PUT")} | {
            (method, True): asyncio.Semaphore(min(SUSPECTS_AT_ONCE, concurrency)) for method in ("GET", "PUT")
        }
        self._telling: dict[str, asyncio.Task[None]] = {}  # by pod UID
        self._waiting: dict[str, tuple[str, PutTarget]] = {}  # what a pod is told after that
        self._not_told: dict[str, float] = {}  # when telling it failed
        self._session: aiohttp.ClientSession | None = None
        self.contacts: dict[str, Contact] = {}

    async def open(self) -> None:
        # Proxies of the environment are for the internet, not for pods.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)

    async def close(self) -> None:
        self._tell_nobody()
        if self._session is not None:
            await self._session.close()

    def forget_all(self) -> None:
        """Start anew, when leadership begins: what was known then may be old."""
        self.contacts.clear()
        self._accepted.clear()
        self._tell_nobody()

    def _tell_nobody(self) -> None:
        for task in self._telling.values():
            task.cancel()
        for known in (self._telling, self._waiting, self._not_told):
            known.clear()

    def forget_except(self, pod_uids: set[str]) -> None:
        """Drop what is known of pods that no job refers to any more."""
        for uid in [uid for uid in self.contacts if uid not in pod_uids]:
            del self.contacts[uid]
            self._not_told.pop(uid, None)
            self._accepted.pop(uid, None)

    def _url(self, address: str, path: str) -> str:
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{AGENT_PORT}{path}"

    async def _ask(self, method: str, url: str, job_uid: str, pod_uid: str, body: str | None = None) -> bytes:
        """An agent's answer to the token that it takes. Raises KeyRefused, or what aiohttp raises.

        An agent never changes its token: where one was taken before, 401 comes from somebody else at this address.
        """
        assert self._session is not None
        accepted = self._accepted.get(pod_uid)
        for key in self._keys if accepted is None else [accepted]:
            headers = {"Authorization": f"Bearer {agent_token(key, job_uid)}", "Content-Type": "application/json"}
            async with self._session.request(method, url, headers=headers, data=body) as answer:
                if answer.status != 401 or accepted is not None:
                    answer.raise_for_status()
                    self._accepted[pod_uid] = key
                    return await answer.read()
        raise KeyRefused

    def _gate(self, method: str, contact: Contact) -> asyncio.Semaphore:
        return self._gates[method, bool(contact.error)]

    async def poll(self, job_uid: str, pod_uid: str, address: str) -> None:
        """Ask one agent for its report and note the outcome."""
        contact = self.contacts.setdefault(pod_uid, Contact(pod_uid=pod_uid, since=time.time()))
        async with self._gate("GET", contact):
            try:
                answer = await self._ask("GET", self._url(address, "/v1/report"), job_uid, pod_uid)
                report = Report.model_validate_json(answer)
            except (aiohttp.ClientError, OSError, TimeoutError, ValidationError, KeyRefused) as error:
                self._failed(pod_uid, contact, "GET", error)
                return
        if report.job_uid != job_uid or not compatible(PROTOCOL_VERSION, report.protocol):
            self._failed(pod_uid, contact, "GET", ValueError(f"job {report.job_uid}, protocol {report.protocol}"))
            return
        INSTRUMENTS.agent_requests.labels("GET", "ok").inc()
        known = self.contacts.get(pod_uid, contact)
        self.contacts[pod_uid] = replace(known, last=time.time(), report=report, error="")

    def tell(self, job_uid: str, put: PutTarget) -> None:
        """Give one agent its target in the background: a dead one must not hold up its job, nor others'.

        A pod is told one thing at a time, the newest last; one that did not take its target is tried again a little
        later. Must be called in the loop.
        """
        uid = put.pod_uid
        if time.monotonic() - self._not_told.get(uid, -RETRY_SECONDS) < RETRY_SECONDS:
            return
        if uid in self._telling:
            self._waiting[uid] = (job_uid, put)
            return
        self._telling[uid] = asyncio.create_task(self.put(job_uid, put), name=f"tell {uid}")
        self._telling[uid].add_done_callback(lambda task: self._told(uid, put, task))

    def _told(self, uid: str, put: PutTarget, task: asyncio.Task[None]) -> None:
        if self._telling.get(uid) is not task:
            return  # everybody was forgotten meanwhile
        del self._telling[uid]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("telling the agent of slot %d", put.slot, exc_info=error)
        following = self._waiting.pop(uid, None)
        if following is not None and following[1].target != put.target:
            self.tell(*following)

    async def put(self, job_uid: str, put: PutTarget) -> None:
        """Give one agent its target and note whether it took it."""
        contact = self.contacts.setdefault(put.pod_uid, Contact(pod_uid=put.pod_uid, since=time.time()))
        async with self._gate("PUT", contact):
            try:
                url = self._url(put.address, "/v1/target")
                await self._ask("PUT", url, job_uid, put.pod_uid, put.target.to_json())
            except (aiohttp.ClientError, OSError, TimeoutError, KeyRefused) as error:
                if isinstance(error, aiohttp.ClientResponseError) and error.status == 409:
                    INSTRUMENTS.agent_requests.labels("PUT", "stale").inc()
                    log.info("agent of slot %d holds a newer target than %d", put.slot, put.target.attempt)
                    return
                self._not_told[put.pod_uid] = time.monotonic()
                self._failed(put.pod_uid, contact, "PUT", error)
                return
        INSTRUMENTS.agent_requests.labels("PUT", "ok").inc()
        self._not_told.pop(put.pod_uid, None)
        known = self.contacts.get(put.pod_uid, contact)
        self.contacts[put.pod_uid] = replace(known, last=time.time(), sent=put.target, error="")

    def _failed(self, pod_uid: str, contact: Contact, method: str, error: Exception) -> None:
        INSTRUMENTS.agent_requests.labels(method, type(error).__name__).inc()
        known = self.contacts.get(pod_uid, contact)
        if isinstance(error, KeyRefused):
            # A sign of life all the same: nothing is gained by ending a pod that trains.
            self.contacts[pod_uid] = replace(known, last=time.time(), error=KEY_REFUSED)
        else:
            self.contacts[pod_uid] = replace(known, error=f"{type(error).__name__}: {error}"[:200])
