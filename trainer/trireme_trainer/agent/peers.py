"""How an agent calls slot 0's agent."""

from __future__ import annotations

import aiohttp

from trireme.protocol import Host
from trireme_trainer.agent.errors import AttemptOver, PeerError
from trireme_trainer.agent.messages import PeerState, SlotShards

PEER_TIMEOUT = aiohttp.ClientTimeout(total=5.0, connect=3.0)


class LeaderClient:
    """Calls to slot 0's agent of one attempt."""

    def __init__(self, leader: Host, token: str, source_address: str) -> None:
        self._base = f"http://{leader.address}:{leader.agent_port}"
        self._session = aiohttp.ClientSession(
            timeout=PEER_TIMEOUT,
            headers={"Authorization": f"Bearer {token}"},
            # A pod speaks from its own address, as on a cluster network.
            connector=aiohttp.TCPConnector(local_addr=(source_address, 0)),
        )

    async def state(self, inputs_of: tuple[int, int] | None = None) -> PeerState:
        """What slot 0 says of itself. Raises PeerError.

        `inputs_of`: the calling slot and the attempt whose inputs it has, where it has them.
        """
        query = {} if inputs_of is None else {"slot": str(inputs_of[0]), "attempt": str(inputs_of[1])}
        try:
            async with self._session.get(f"{self._base}/v1/peer", params=query) as response:
                if response.status != 200:
                    raise PeerError(f"slot 0 answered {response.status}")
                return PeerState.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PeerError(f"slot 0 at {self._base}: {type(error).__name__}: {error}") from error

    async def send_shards(self, message: SlotShards) -> None:
        """Report this slot's files of a checkpoint. Raises PeerError, AttemptOver."""
        try:
            async with self._session.post(f"{self._base}/v1/shards", data=message.to_json()) as response:
                if response.status == 409:
                    raise AttemptOver(await response.text())
                if response.status >= 300:
                    raise PeerError(f"slot 0 answered {response.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise PeerError(f"slot 0 at {self._base}: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Close connections."""
        await self._session.close()
