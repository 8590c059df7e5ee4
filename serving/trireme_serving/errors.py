"""Why a model or an adapter cannot be served."""


class Unusable(Exception):
    """Files that are there and whole, and cannot be served; `reason` is one word of docs/inferenceservice.md."""

    def __init__(self, reason: str, file: str, message: str) -> None:
        super().__init__(f"{file}: {message}" if file else message)
        self.reason = reason
        self.file = file


class EngineFailed(Exception):
    """vLLM ended, or did not begin to answer; the message is what it said last."""


class EngineRefused(Exception):
    """vLLM answered a request of ours with an error."""
