"""`trireme demo`: train on this computer, lose a node, finish anyway."""

from trireme_cli.demo.command import demo

__all__ = ["demo"]
