"""An edit as a value: what to change, in which model, by how much; and how to apply and undo it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from salve_plugin.control import application, matching
from salve_plugin.control.application import OnChanged
from salve_plugin.control.matching import BaseMatch
from salve_plugin.control.operators import Gate, LowRankMap, LowRankUpdate
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.recipe_file import read_recipe
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import listed, shortened
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.network import OnBaseMismatch

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False, repr=False)
class Edit(Recipe, Tabular):
    """One permanent edit: an operator on a site, taken over by the weights around it.

    A value: two edits are equal when their digests are. Applying returns nothing and changes the
    model in place; `edited` returns a changed copy; the edit itself never changes. `suppress`,
    `enhance` and `edit_at` make edits. The attributes are those of
    `salve_plugin.control.recipe.Recipe`: site, operator, targets, base, rows, provenance, fold and
    exactness.
    """

    @classmethod
    def from_recipe(cls, recipe: str | os.PathLike[str] | bytes | None) -> "Edit":
        """Return the edit that the bench of an atlas holds, from its file or the bytes of that.

        Raises:
            InputError: if it is None, as that of a widget without an edit is, or a field of it is
                out of range.
            ArtifactError: if it is no recipe, or corrupt.
        """
        return cls.from_json(*read_recipe(recipe))

    def apply_(self, model: nn.Module, *, on_base_mismatch: OnBaseMismatch = "error") -> None:
        """Apply the edit in place; see `salve_plugin.control.application.apply_`."""
        application.apply_(model, self, on_base_mismatch=on_base_mismatch)

    def revert_(self, model: nn.Module, *, on_changed: OnChanged = "error") -> None:
        """Undo the edit bit for bit; see `salve_plugin.control.application.revert_`."""
        application.revert_(model, self, on_changed=on_changed)

    def match(self, model: nn.Module) -> BaseMatch:
        """Say how far a model is the edit's base; see `salve_plugin.control.matching.match`."""
        return matching.match(model, self)

    @contextmanager
    def applied(
        self, model: nn.Module, *, on_base_mismatch: OnBaseMismatch = "error"
    ) -> Iterator[None]:
        """Apply the edit for the length of the context; it is reverted on error too."""
        self.apply_(model, on_base_mismatch=on_base_mismatch)
        try:
            yield
        finally:
            # Other edits may have come or gone meanwhile: reverting needs no order.
            self.revert_(model)

    def edited(self, model: Model, *, on_base_mismatch: OnBaseMismatch = "error") -> Model:
        """Return a deep copy of the model with the edit; the model is left unchanged."""
        # Ledgers are copied along, so that edits which are on the model can be reverted on the
        # copy.
        copy = deepcopy(model)
        self.apply_(copy, on_base_mismatch=on_base_mismatch)
        return copy

    def __repr__(self) -> str:
        """Say in one line what the edit does; the tensors themselves would fill a screen."""
        return shortened(
            f"<Edit {self.digest[:12]}: {self.kind} of '{self.site.name}', {self.amount}, "
            f"{self._rows} of {listed(self.base.tensors)}>"
        )

    def as_table(self) -> Table:
        """Return what the edit does, to what, and what is known of it."""
        description = self.base.description
        known = {
            "what": self.kind,
            "how much": self.amount,
            "site": self.site.name,
            "changes": f"{self._rows} of {listed(self.base.tensors)}",
            "model": description.get("architecture"),
            "weights": description.get("pretrained_tag"),
            "from dictionary": self.dictionary_digest,
            "note": self.provenance.note or None,
            "exactness": None if self.exactness is None else repr(self.exactness),
            "digest": self.digest,
        }
        rows = [(name, value) for name, value in known.items() if value is not None]
        return Table("Edit", ("", ""), rows)

    @property
    def _rows(self) -> str:
        return "all rows" if self.rows is None else f"rows {listed(self.rows)}"

    @property
    def kind(self) -> str:
        """What is done to what, in a few words: "suppress latent 2"."""
        mode = self.operator.mode if isinstance(self.operator, Gate) else None
        return kind_of(self.operator.form, mode, self.latents)

    @property
    def amount(self) -> str:
        """How much of it, in a few words: "strength 1.5"."""
        if isinstance(self.operator, Gate):
            return f"strength {self.operator.strength:g}"
        if isinstance(self.operator, LowRankMap):
            return f"rank {self.operator.rank}, scale {self.operator.scale:g}"
        assert isinstance(self.operator, LowRankUpdate)
        return f"rank {self.operator.rank}"


def kind_of(form: str, mode: str | None, latents: Sequence[int]) -> str:
    """Return what is done to what, from an operator's form, a gate's mode, and the latents."""
    numbers = ", ".join(map(str, latents))
    about = f" latent{'s' * (len(latents) > 1)} {numbers}" if latents else ""
    return f"{mode}{about or ' a direction'}" if mode else form.replace("_", " ") + about


def check_edit(edit: object) -> None:
    """Refuse what is no edit.

    Raises:
        InputError: that says how to make one.
    """
    if not isinstance(edit, Edit):
        raise InputError(
            f"an edit was expected, got {type(edit).__name__}; make one: salve.suppress(...) or "
            "another of the functions that return an edit"
        )
