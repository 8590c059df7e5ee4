"""Errors of more than one of the agent's parts."""


class AttemptOver(Exception):
    """Slot 0 is at another attempt: nothing of this one will be committed."""


class PeerError(OSError):
    """The peer did not answer, or answered with an error."""
