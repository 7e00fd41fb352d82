"""The networks that a model is: as it is now, and as it was without the edits that are on it."""

from functools import cached_property

import torch

from salve_plugin.control.ledger import ATTRIBUTE
from salve_plugin.control.locks import locked
from salve_plugin.control.matching import pristine_state
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.network import OnBaseMismatch, check_choice, differ, network_digest


class Networks:
    """A model's identities, each hashed when first asked for, and compared with those of evidence.

    A short-lived value: it does not notice later changes of the model.
    """

    def __init__(
        self,
        hooked: HookedModel,
        on_base_mismatch: OnBaseMismatch = "error",
        *,
        pristine: str | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            hooked: the attached model.
            on_base_mismatch: what the checks do: "error" refuses, "warn" warns.
            pristine: its network without edits, where that has been hashed already.

        Raises:
            InputError: if `on_base_mismatch` is neither, or the model is not attached.
        """
        check_attached(hooked)
        check_choice(on_base_mismatch)
        self._hooked, self._on_base_mismatch = hooked, on_base_mismatch
        if pristine is not None:
            # This fills the cached property below: it is no data descriptor, so that the value goes
            # to the instance's own dict, where the property would put it.
            self.pristine = pristine

    @cached_property
    @torch.no_grad()
    def present(self) -> str:
        """The network as it is, edits of hidden layers included."""
        with locked(self._hooked) as model:
            if not any(ATTRIBUTE in vars(module) for module in model.modules()):
                return self.pristine  # often hashed already, with the base of an edit
            return network_digest(self._hooked)

    @cached_property
    @torch.no_grad()
    def pristine(self) -> str:
        """The network without any edit."""
        with locked(self._hooked) as model:
            return network_digest(self._hooked, pristine_state(model))

    def check_present(self, part: str, network: str | None) -> None:
        """Refuse activations, or what was computed from them, that the model does not give now.

        Args:
            part: what it is, for the message.
            network: what it is of; None, not known, is accepted.

        Raises:
            BaseMismatchError: if it is of another network than the model as it is.
        """
        if network is not None and network != self.present:
            differ(part, network, "the model", self.present, self._on_base_mismatch)

    def check_either(self, part: str, network: str | None) -> None:
        """Refuse what was learned from another network, whether or not edits are on the model.

        A dictionary belongs to the network that it was learned from while its own edits are on it,
        and one that was learned from an edited model belongs to that.

        Raises:
            BaseMismatchError: if it is neither of the model as it is nor of that without edits.
        """
        # What has been hashed already is asked first, since hashing reads the whole network.
        if network is None or network in (vars(self).get("pristine"), vars(self).get("present")):
            return
        if network not in (self.present, self.pristine):
            differ(part, network, "the model", self.present, self._on_base_mismatch)
