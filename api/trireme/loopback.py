"""Addresses of this computer are never asked through a proxy."""

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(url: str | None) -> bool:
    """Whether a URL leads to this computer: `localhost`, or any address of 127.0.0.0/8 or ::1.

    NO_PROXY names single hosts, seldom a network, so that clients which go by it alone would ask a proxy for
    127.16.0.1. The Go clients (kubectl, rclone) have the same rule.
    """
    host = urlsplit(url or "").hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
