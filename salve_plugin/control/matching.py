"""What a model is without the edits on it, and how far that is the base of an edit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salve_plugin.control.base import Base, Fingerprint, plain_json
from salve_plugin.control.ledger import ATTRIBUTE, pristine_of
from salve_plugin.control.locks import locked
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.slots import Slot, slots_of
from salve_plugin.errors import BaseMismatchError, UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import network_digest
from salve_plugin.store.digest import fingerprints, state_digest


def edited_slots(model: nn.Module) -> list[Slot]:
    """Return every parameter that a ledger lies at, by its first name.

    Raises:
        UnsupportedModelError: if one has been parametrized or pruned since.
    """
    paths = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module.__dict__.get(ATTRIBUTE, ())
    ]
    slots = slots_of(model, paths).values()
    return list({id(slot.parameter): slot for slot in slots}.values())


def pristine_fingerprint(slot: Slot) -> Fingerprint:
    """Return the fingerprint of a parameter without the edits on it."""
    return Fingerprint.of(pristine_of(slot))


def pristine_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the bare model's state dict without any edit, by name."""
    # Once each: the names of a tied weight are one tensor here, too.
    pristine = {id(slot.parameter): pristine_of(slot) for slot in edited_slots(model)}
    return {
        name: pristine.get(id(tensor), tensor.detach())
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }


@torch.no_grad()
def base_of(hooked: HookedModel, paths: Sequence[str]) -> Base:
    """Return the base of an edit of some parameters; all is hashed, once, as it is without edits.

    Raises:
        BaseMismatchError: if there is no such parameter.
        UnsupportedModelError: if one is no plain parameter.
    """
    with locked(hooked) as network:
        # The digests over everything are made of those of single tensors, so that each is hashed
        # once.
        slots, prints = slots_of(network, paths), fingerprints(pristine_state(network))
        return Base(
            plain_json(hooked.description),
            {path: prints.get(path) or pristine_fingerprint(slot) for path, slot in slots.items()},
            state_digest(prints),
            network_digest(hooked, prints),
        )


@dataclass(frozen=True)
class BaseMatch:
    """How far a model, without the edits on it, is the base that an edit was made for.

    Attributes:
        touched: whether every parameter that the edit touches is the base's, so that it applies.
        rest: whether everything else is, too; None if the edit does not know its whole base, or the
            touched parameters differ already.
    """

    touched: bool
    rest: bool | None

    def __bool__(self) -> bool:
        """Return whether the edit applies."""
        return self.touched

    def to_json(self) -> dict[str, bool | None]:
        """Return plain JSON values."""
        return {"touched": self.touched, "rest": self.rest}

    def __str__(self) -> str:
        """Say in one sentence what was compared and found."""
        if not self.touched:
            return "the model is not the one that the edit was made for"
        rest = {
            True: "and everything else is that of its base",
            False: "but something else in the model is not that of its base",
            None: "the rest was not compared: the edit does not know its whole base",
        }
        return f"the parameters that the edit touches are those it was made for, {rest[self.rest]}"


@torch.no_grad()
def match(model: nn.Module, edit: Recipe) -> BaseMatch:
    """Compare a model with an edit's base; hashes every tensor of the model.

    Edits that are on the model do not count: what it was without them is compared.
    """
    return match_all(model, [edit])


@torch.no_grad()
def match_all(model: nn.Module, edits: Sequence[Recipe]) -> BaseMatch:
    """Compare a model with the base of several edits; see `match`."""
    with locked(model) as network:
        try:
            slots = slots_of(network, {path for edit in edits for path in edit.base.tensors})
        except (BaseMismatchError, UnsupportedModelError):
            return BaseMatch(False, None)
        prints = {path: pristine_fingerprint(slot) for path, slot in slots.items()}
        if any(prints[path] != own for e in edits for path, own in e.base.tensors.items()):
            return BaseMatch(False, None)
        # Edits of one base all have its one digest; with two of them no model is the base of both.
        states = {edit.base.state for edit in edits}
        if None in states:
            return BaseMatch(True, None)
        return BaseMatch(True, states == {state_digest(pristine_state(network))})
