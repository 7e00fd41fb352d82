"""Every error that the library raises on purpose.

Each is a `SalveError` and also the built-in error that a caller would expect, so that both
`except SalveError` and `except ValueError` work. A message names the offending value, what was
expected, and what to do.
"""


def printable(text: str) -> str:
    r"""Return text in which all that a terminal or a log would obey is shown as an escape.

    That is control characters, line breaks, and marks that reorder text.

    >>> print(printable("red: \x1b[31m"))
    red: \x1b[31m
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class SalveError(Exception):
    """Base of all errors raised on purpose by salve_plugin.

    Messages quote what files and servers say; they are printable all the same.
    """

    def __str__(self) -> str:
        """Return the message in one printable line."""
        return printable(super().__str__())


class InputError(SalveError, ValueError):
    """A value given by the caller cannot be used: a shape, a label, a NaN, an empty loader."""


class UnsupportedModelError(SalveError, ValueError):
    """No adapter knows the model, or it has no classifier that can be edited."""


class UnknownSiteError(SalveError, ValueError):
    """A site name that the hooked model does not have; the message lists the right ones."""


class HookNotFiredError(SalveError, RuntimeError):
    """A requested activation was never computed by the forward pass."""


class AttributionError(SalveError, RuntimeError):
    """An attribution cannot be computed or would be meaningless."""


class MissingExtraError(SalveError, ImportError):
    """A package is missing that an extra of salve-plugin installs; the message names the extra."""


class ReadError(SalveError, OSError):
    """A file of the caller's (an image, a shard, a checkpoint) cannot be read."""


class WriteError(SalveError, OSError):
    """Output could not be written; what had been finished before is whole."""


class FolderInUseError(WriteError):
    """Another job is writing into the folder; the message names it."""


class EditStateError(SalveError, RuntimeError):
    """An edit is applied twice, reverted without being applied, or its weights were changed."""


class BaseMismatchError(SalveError, ValueError):
    """An edit or dictionary belongs to another base model."""


class ArtifactError(SalveError, ValueError):
    """An edit artifact is corrupt, truncated, of an unknown version, or otherwise refused."""


class MissingFileError(ArtifactError):
    """There is no artifact, or a file of it is missing."""


class HubError(SalveError, OSError):
    """The Hub did not do what was asked; nothing local was changed.

    Attributes:
        reason: what went wrong, one of the words of `salve_plugin.store.hub.failures.Reason`.
        status: the HTTP status, if there was an answer.
    """

    def __init__(self, message: str, *, reason: str, status: int | None = None) -> None:
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason = reason
        self.status = status


class HubConflictError(HubError):
    """Somebody else's commit or tag is in the way; nothing of it was overwritten.

    Attributes:
        winner: the commit that is in the way.
    """

    def __init__(self, message: str, *, winner: str, status: int | None = None) -> None:
        """Keep the commit beside the message."""
        super().__init__(message, reason="conflict", status=status)
        self.winner = winner
