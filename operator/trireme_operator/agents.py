"""Talking to agents: GET /v1/report and PUT /v1/target, with the job's bearer token, bounded and timed."""

import asyncio
import logging
import time
from dataclasses import replace

import aiohttp
from pydantic import ValidationError

from trireme.protocol import Report, compatible
from trireme.protocol.messages import PROTOCOL_VERSION
from trireme_operator import metrics
from trireme_operator.build import agent_token
from trireme_operator.decide import Contact, PutTarget

log = logging.getLogger(__name__)

AGENT_PORT = 7070


class AgentClient:
    """Keeps what is known of every agent, by the UID of its pod."""

    def __init__(self, key: bytes, timeout_seconds: float, concurrency: int) -> None:
        self._key = key
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._gate = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None
        self.contacts: dict[str, Contact] = {}

    async def open(self) -> None:
        # Proxies of the environment are for the internet, not for pods.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def forget_all(self) -> None:
        """Start anew, when leadership begins: what was known then may be old."""
        self.contacts.clear()

    def forget_except(self, pod_uids: set[str]) -> None:
        """Drop what is known of pods that no job refers to any more."""
        for uid in [uid for uid in self.contacts if uid not in pod_uids]:
            del self.contacts[uid]

    def _url(self, address: str, path: str) -> str:
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{AGENT_PORT}{path}"

    def _headers(self, job_uid: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {agent_token(self._key, job_uid)}"}

    async def poll(self, job_uid: str, pod_uid: str, address: str) -> None:
        """Ask one agent for its report and note the outcome."""
        assert self._session is not None
        contact = self.contacts.setdefault(pod_uid, Contact(pod_uid=pod_uid, since=time.time()))
        async with self._gate:
            try:
                url = self._url(address, "/v1/report")
                async with self._session.get(url, headers=self._headers(job_uid)) as answer:
                    answer.raise_for_status()
                    report = Report.model_validate_json(await answer.read())
            except (aiohttp.ClientError, OSError, TimeoutError, ValidationError) as error:
                self._failed(pod_uid, contact, "GET", error)
                return
        if report.job_uid != job_uid or not compatible(PROTOCOL_VERSION, report.protocol):
            self._failed(pod_uid, contact, "GET", ValueError(f"job {report.job_uid}, protocol {report.protocol}"))
            return
        metrics.AGENT_POLLS.labels("GET", "ok").inc()
        known = self.contacts.get(pod_uid, contact)
        self.contacts[pod_uid] = replace(known, last=time.time(), report=report, error="")

    async def put(self, job_uid: str, put: PutTarget) -> None:
        """Give one agent its target and note whether it took it."""
        assert self._session is not None
        contact = self.contacts.setdefault(put.pod_uid, Contact(pod_uid=put.pod_uid, since=time.time()))
        headers = {**self._headers(job_uid), "Content-Type": "application/json"}
        async with self._gate:
            try:
                url = self._url(put.address, "/v1/target")
                async with self._session.put(url, headers=headers, data=put.target.to_json()) as answer:
                    if answer.status == 409:
                        metrics.AGENT_POLLS.labels("PUT", "stale").inc()
                        log.info("agent of slot %d holds a newer target than %d", put.slot, put.target.attempt)
                        return
                    answer.raise_for_status()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._failed(put.pod_uid, contact, "PUT", error)
                return
        metrics.AGENT_POLLS.labels("PUT", "ok").inc()
        known = self.contacts.get(put.pod_uid, contact)
        self.contacts[put.pod_uid] = replace(known, last=time.time(), sent=put.target, error="")

    def _failed(self, pod_uid: str, contact: Contact, method: str, error: Exception) -> None:
        metrics.AGENT_POLLS.labels(method, type(error).__name__).inc()
        known = self.contacts.get(pod_uid, contact)
        self.contacts[pod_uid] = replace(known, error=f"{type(error).__name__}: {error}"[:200])
