"""`trireme dashboard`: a small web page about what runs in a cluster, served on this computer alone."""

from trireme_cli.dashboard.command import dashboard

__all__ = ["dashboard"]
