"""Authentication: static tokens and signed service-account tokens."""

from __future__ import annotations

import base64
import binascii
import json
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from . import identities
from .store import Obj, Store

ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = ISSUER
AUTHENTICATED = "system:authenticated"
_COORDINATE_BYTES = 32


@dataclass(frozen=True)
class User:
    """Who makes a request."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = field(default_factory=dict)

    def as_info(self) -> Obj:
        """The authentication.k8s.io UserInfo."""
        info: Obj = {"username": self.name, "groups": list(self.groups)}
        if self.uid:
            info["uid"] = self.uid
        if self.extra:
            info["extra"] = self.extra
        return info


ANONYMOUS = User("system:anonymous", groups=("system:unauthenticated",))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Authenticator:
    """Finds the user behind a bearer token."""

    def __init__(self, data_dir: Path, store: Store, key: ec.EllipticCurvePrivateKey) -> None:
        self._tokens_path = identities.tokens_path(data_dir)
        self._store, self._key = store, key
        self._stamp: tuple[int, int] | None = None
        self._tokens: dict[str, tuple[str, tuple[str, ...]]] = {}

    def user(self, token: str) -> User | None:
        """The user of a token, None when it is unknown, expired or its service account is gone."""
        self._refresh()
        if found := self._tokens.get(token):
            return User(found[0], found[0], (*found[1], AUTHENTICATED))
        if token.count(".") == 2:
            return self._service_account(token)
        return None

    def _refresh(self) -> None:
        try:
            stat = self._tokens_path.stat()
        except FileNotFoundError:
            return
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._tokens, self._stamp = identities.load(self._tokens_path), stamp

    def sign(self, claims: dict[str, Any]) -> str:
        """A JWT (ES256) over the claims."""
        header = _encode(json.dumps({"alg": "ES256", "kid": "trireme-local"}).encode())
        body = _encode(json.dumps(claims, separators=(",", ":")).encode())
        signed = f"{header}.{body}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        raw = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
        return f"{signed}.{_encode(raw)}"

    def claims(self, token: str) -> dict[str, Any] | None:
        """The claims of a token that this server signed and that is valid now."""
        head, body, signature = token.split(".")
        try:
            raw = _decode(signature)
            r = int.from_bytes(raw[:_COORDINATE_BYTES], "big")
            s = int.from_bytes(raw[_COORDINATE_BYTES:], "big")
            public = self._key.public_key()
            public.verify(encode_dss_signature(r, s), f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
            found: dict[str, Any] = json.loads(_decode(body))
        except (InvalidSignature, ValueError, binascii.Error):
            return None
        moment = time.time()
        return found if found.get("nbf", 0) <= moment + 5 and moment < found.get("exp", 0) else None

    def service_account_token(
        self, account: Obj, seconds: int, audiences: list[str], bound: Obj | None
    ) -> tuple[str, float]:
        """A token for a ServiceAccount object and the UNIX time at which it expires."""
        moment = int(time.time())
        meta = account["metadata"]
        private: dict[str, Any] = {
            "namespace": meta["namespace"],
            "serviceaccount": {"name": meta["name"], "uid": meta["uid"]},
        }
        if bound is not None:
            private[bound["kind"].lower()] = {"name": bound["name"], "uid": bound.get("uid", "")}
        claims = {
            "aud": audiences,
            "exp": moment + seconds,
            "iat": moment,
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": private,
            "nbf": moment,
            "sub": f"system:serviceaccount:{meta['namespace']}:{meta['name']}",
        }
        return self.sign(claims), moment + seconds

    def _service_account(self, token: str) -> User | None:
        claims = self.claims(token)
        if claims is None or AUDIENCE not in claims.get("aud", ()):
            return None
        private = claims["kubernetes.io"]
        namespace, account = private["namespace"], private["serviceaccount"]
        entry = self._store.get("/serviceaccounts", namespace, account["name"])
        if entry is None or entry.obj["metadata"]["uid"] != account["uid"]:
            return None
        extra = {"authentication.kubernetes.io/credential-id": [f"JTI={claims['jti']}"]}
        if pod := private.get("pod"):
            bound = self._store.get("/pods", namespace, pod["name"])
            if bound is None or (pod["uid"] and bound.obj["metadata"]["uid"] != pod["uid"]):
                return None
            extra["authentication.kubernetes.io/pod-name"] = [pod["name"]]
            extra["authentication.kubernetes.io/pod-uid"] = [pod["uid"]]
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
        return User(claims["sub"], account["uid"], groups, extra)
