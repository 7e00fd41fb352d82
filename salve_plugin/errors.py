"""Every error that the library raises on purpose.

Each is a `SalveError` and also the built-in error that a caller would expect, so that both
`except SalveError` and `except ValueError` work. A message names the offending value, what was
expected, and what to do.
"""


class SalveError(Exception):
    """Base of all errors raised on purpose by salve_plugin."""


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


class ReadError(SalveError, OSError):
    """A file of the caller's (an image, a shard, a checkpoint) cannot be read."""


class WriteError(SalveError, OSError):
    """Output could not be written; what had been finished before is whole."""


class EditStateError(SalveError, RuntimeError):
    """An edit is applied twice, reverted without being applied, or its weights were changed."""


class BaseMismatchError(SalveError, ValueError):
    """An edit or dictionary belongs to another base model."""


class ArtifactError(SalveError, ValueError):
    """An edit artifact is corrupt, truncated, of an unknown version, or otherwise refused."""
