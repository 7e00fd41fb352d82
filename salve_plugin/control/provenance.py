"""What an edit says of itself beside what it does: its origin, and how exact it was measured."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.site import Count
from salve_plugin.store.record import Record, Sha256

MAX_NOTE = 1000
"""Characters of a note."""


@dataclass(frozen=True)
class Provenance(Record):
    """Where an edit's directions come from.

    Attributes:
        kind: "latents" of a dictionary, a fitted "concept", "written" by a method that computes a
            layer's update (ROME, a mask), or "given" by the caller.
        latents: which atoms of the dictionary, in the order of the operator's directions.
        dictionary: the dictionary's digest, if it is known.
        note: how a concept was fitted, or what wrote the edit, in a few words.
    """

    __repr__ = one_line

    kind: Literal["latents", "concept", "written", "given"] = "given"
    latents: tuple[Count, ...] = ()
    dictionary: Sha256 | None = None
    note: Annotated[str, Meta(max_length=MAX_NOTE)] = ""

    @classmethod
    def of_concept(cls, note: str) -> "Provenance":
        """Return that of a fitted concept; a note that is too long loses its end."""
        return cls("concept", note=note[:MAX_NOTE])

    def __post_init__(self) -> None:
        """Raise InputError if latents contradict the kind, or the note is too long to be read."""
        if (self.kind == "latents") != bool(self.latents):
            raise InputError(f"provenance '{self.kind}' has the latents {self.latents}")
        # The bound in its type is asked of files only.
        if len(self.note) > MAX_NOTE:
            raise InputError(
                f"the note of a provenance has {len(self.note)} characters; at most {MAX_NOTE} are "
                f"stored: shorten it ({self.note[:60]!r}...)"
            )


@dataclass(frozen=True)
class Exactness(Record):
    """The edited model's logits against those with the same change made by a hook at the site.

    Attributes:
        difference: the largest difference of a logit, relative to the spread of the logits.
        effect: the largest change of a logit by the edit, relative to the same spread: without an
            effect there is nothing that could differ.
        images: how many probe images were compared.
        dtype: in which the models ran, e.g. `float32`.
    """

    difference: Annotated[float, Meta(ge=0)]
    effect: Annotated[float, Meta(ge=0)]
    images: Count
    dtype: str
