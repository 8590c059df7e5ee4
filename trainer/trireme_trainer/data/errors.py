"""What can be wrong with a job's data; each error becomes a reason of condition InputsReady."""


class DataError(Exception):
    """The data cannot be trained on. `reason` is the condition reason; `retryable` says whether waiting may help."""

    reason = "DataUnreadable"
    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class DataNotFound(DataError):
    """No such path, object or glob match; a mount or an upload may still bring it."""

    reason = "DataNotFound"
    retryable = True


class DataUnreadable(DataError):
    """A file is there and cannot be read or parsed."""

    reason = "DataUnreadable"
    retryable = False


class DataEmpty(DataError):
    """The files hold no document."""

    reason = "DataEmpty"
    retryable = False


class NoTokens(DataError):
    """Documents were read, and fewer tokens than one sequence are left after filtering."""

    reason = "NoTokens"
    retryable = False


class TokenizerUnusable(DataError):
    """The tokenizer file is no tokenizer, or does not fit the model's vocabulary."""

    reason = "TokenizerUnusable"
    retryable = False
