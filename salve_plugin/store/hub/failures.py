"""One error type over the Hub client's many, with the cause kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from salve_plugin.errors import HubError, SalveError, WriteError

Reason = Literal[
    "conflict", "forbidden", "gated", "no_file", "no_revision", "not_cached", "not_found",
    "offline", "rate_limited", "rejected", "server", "transfer", "unauthorized", "unreachable",
]  # fmt: skip

TRANSIENT = frozenset({"rate_limited", "server", "transfer", "unreachable"})
"""Reasons that may be gone when the same call is made again."""

_ADVICE: dict[Reason, str] = {
    "conflict": "somebody else committed; look at the repository, then call again",
    "forbidden": "use a token that may read this repository, or write to it for a push",
    "gated": "ask for access on the repository's page, then pass your token",
    "no_file": "check the subfolder and the revision",
    "no_revision": "check the name of the branch or tag, or the commit",
    "not_cached": "call once with a connection, or check cache_dir and revision",
    "not_found": "check the name; for a private repository pass a token that may read it",
    "offline": "unset HF_HUB_OFFLINE: without a network, things are read from the cache only",
    "rate_limited": "wait, then make the same call again",
    "rejected": "the Hub refused the request; see the cause",
    "server": "the Hub has a problem; make the same call again later",
    "transfer": "the transfer broke; make the same call again",
    "unauthorized": "the token is not valid; pass another or log in again",
    "unreachable": "check the connection and the endpoint, then make the same call again",
}
assert set(_ADVICE) == set(get_args(Reason))

_BY_STATUS: dict[int, Reason] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    408: "transfer",
    409: "conflict",
    412: "conflict",
    429: "rate_limited",
}
# Libraries below the Hub client, of all its versions: whatever they raise is about the connection.
_TRANSPORTS = {"httpcore", "httpcore2", "httpx", "httpx2", "requests", "ssl", "urllib3"}


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise what the Hub client raises inside as a `HubError` that says what was being done.

    Args:
        doing: for the message, such as "pull me/edit".

    Raises:
        HubError: for whatever the Hub, the connection or the client's cache did wrong.
        WriteError: if the cache cannot be written.
    """
    try:
        yield
    except SalveError:
        raise
    except Exception as error:
        cause = _root(error)
        reason = _reason(cause)
        if reason is not None:
            status = getattr(getattr(cause, "response", None), "status_code", None)
            text = " ".join(str(cause).split())[:500] or type(cause).__name__
            raise HubError(
                f"cannot {doing}: {_ADVICE[reason]}. The cause: {text}",
                reason=reason,
                status=status,
            ) from error
        # What is neither the Hub's nor the disk's doing is an error of this program: it stays as it
        # is.
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise WriteError(
            f"cannot {doing}: {cause.strerror or cause} ({cause.filename or 'in the cache'}). Free "
            "some space or choose another cache_dir (HF_HUB_CACHE for a push), then make the same "
            "call again"
        ) from error


def _root(error: Exception) -> Exception:
    """Return the error that made the client give up, where it says only that it did."""
    from huggingface_hub.errors import HfHubHTTPError

    # The client wraps what happened in an error that says only that the file is not in the cache.
    while not isinstance(error, HfHubHTTPError):
        below = error.__cause__
        if not isinstance(below, Exception) or _reason(below) is None:
            break
        error = below
    return error


def _reason(error: Exception) -> Reason | None:
    from huggingface_hub import errors

    # Subclasses first: to the client, a gated repository is one not found, and what is missing in
    # the cache an entry not found.
    kinds: list[tuple[type[Exception], Reason]] = [
        (errors.GatedRepoError, "gated"),
        (errors.RevisionNotFoundError, "no_revision"),
        (errors.LocalEntryNotFoundError, "not_cached"),
        (errors.EntryNotFoundError, "no_file"),
        (errors.RepositoryNotFoundError, "not_found"),
        (errors.OfflineModeIsEnabled, "offline"),
        (errors.HFValidationError, "rejected"),
        (errors.BadRequestError, "rejected"),
    ]
    for kind, reason in kinds:
        if isinstance(error, kind):
            return reason
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return _BY_STATUS.get(status, "server" if status >= 500 else "rejected")
    module = type(error).__module__.partition(".")[0]
    if module in _TRANSPORTS or isinstance(error, ConnectionError | TimeoutError):
        return "unreachable"
    # hf_xet raises plain RuntimeErrors, the client an OSError without a number for short files.
    if isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None):
        return "transfer"
    # An answer that the client cannot read.
    nonsense = isinstance(error, ValueError | LookupError | TypeError | AttributeError)
    return "server" if nonsense or module == "huggingface_hub" else None
