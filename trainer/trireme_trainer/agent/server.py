"""The agent's HTTP interface: for the operator /v1/report and /v1/target, for other slots /v1/peer and /v1/shards."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic import ValidationError

from trireme.protocol import PROTOCOL_VERSION, Target, compatible
from trireme.protocol.base import WireModel
from trireme_trainer.agent.core import Agent, StaleTarget
from trireme_trainer.agent.errors import AttemptOver
from trireme_trainer.agent.messages import SlotShards

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_BODY_BYTES = 16 << 20


def _answer(model: WireModel) -> web.Response:
    return web.Response(text=model.to_json(), content_type="application/json")


def _refuse(status: int, reason: str, message: str) -> web.Response:
    return web.json_response({"reason": reason, "message": message}, status=status)


def make_app(agent: Agent, token: str) -> web.Application:
    """The application; every path but /healthz wants the job's bearer token."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != "/healthz":
            given = request.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, expected):
                return _refuse(401, "Unauthorized", "the bearer token of this job is required")
        return await handler(request)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def get_report(_: web.Request) -> web.Response:
        agent.heard_operator()
        return _answer(agent.report())

    async def put_target(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            version = json.loads(body).get("protocol", "")
            if not isinstance(version, str) or not compatible(PROTOCOL_VERSION, version):
                message = f"this agent speaks protocol {PROTOCOL_VERSION}, the target is of {version!r}"
                return _refuse(426, "ProtocolVersion", message)
            target = Target.model_validate_json(body)
        except (ValidationError, ValueError, AttributeError) as error:
            return _refuse(400, "BadRequest", str(error))
        try:
            agent.apply(target)
        except StaleTarget as error:
            return _refuse(409, "Stale", str(error))
        agent.heard_operator()
        return _answer(agent.report())

    async def get_peer(request: web.Request) -> web.Response:
        slot, attempt = request.query.get("slot", ""), request.query.get("attempt", "")
        if slot.isdecimal() and attempt.isdecimal():
            agent.take_inputs_ready(int(slot), int(attempt))
        return _answer(agent.peer_state())

    async def post_shards(request: web.Request) -> web.Response:
        try:
            message = SlotShards.model_validate_json(await request.read())
        except ValidationError as error:
            return _refuse(400, "BadRequest", str(error))
        try:
            agent.take_shards(message)
        except AttemptOver as error:
            return _refuse(409, "Stale", str(error))
        return web.json_response({})

    app = web.Application(middlewares=[authenticate], client_max_size=MAX_BODY_BYTES)
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/v1/report", get_report),
            web.put("/v1/target", put_target),
            web.get("/v1/peer", get_peer),
            web.post("/v1/shards", post_shards),
        ]
    )
    return app
