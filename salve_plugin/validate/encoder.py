"""Any function from activations to latents as what Grad-FAM takes for a dictionary."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import brief, shortened
from salve_plugin.site import Site

Encode = Callable[[Tensor], Tensor]
"""From rows (..., width) to latents (..., n_latents)."""


class CallableEncoder(nn.Module):
    """A function as a dictionary; see `encoder`.

    Attributes:
        n_latents: number of latents.
        width: number of features that it reads; absent if nobody has said.
        site: where in a model it reads them; None if nobody has said.
        pre_activation: the function of the same form before the activation function, or None.
    """

    def __init__(
        self,
        encode: Encode,
        n_latents: int,
        pre_activation: Encode | None,
        width: int | None,
        site: Site | None,
    ) -> None:
        """Check the functions; `encoder` has the defaults.

        Raises:
            InputError: see `encoder`.
        """
        super().__init__()
        for name, function in (("encode", encode), ("pre_activation", pre_activation)):
            if not callable(function) and not (function is None and name != "encode"):
                raise InputError(f"{name} is {brief(function)}; expected a function of rows")
        if isinstance(n_latents, bool) or not isinstance(n_latents, int) or n_latents < 1:
            raise InputError(f"n_latents is {brief(n_latents)}; expected the number of latents")
        if site is not None and width not in (None, site.width):
            raise InputError(
                f"width is {width}, but site '{site.name}' has {site.width} features; leave it out"
            )
        self._encode = encode
        # The module whose function it is tells in which type and on which device to compute.
        owner = getattr(encode, "__self__", encode)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.n_latents = n_latents
        reads = width if site is None else site.width
        # Absent and not None: Grad-FAM asks by getattr, with the activation's own width as default.
        if reads is not None:
            self.width = reads
        self.site = site
        self.pre_activation = None if pre_activation is None else self._checked(pre_activation)
        if reads is not None:
            self._try(reads)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of rows, (..., n_latents).

        Raises:
            InputError: if the function returns anything else.
        """
        return self._checked(self._encode)(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the latents of rows."""
        return self.encode(x)

    def __repr__(self) -> str:
        """Say in one line whose function it is."""
        name = getattr(self._encode, "__qualname__", type(self._encode).__name__)
        return shortened(f"<encoder {name}: {self.n_latents} latents>")

    def _checked(self, function: Encode) -> Encode:
        def checked(x: Tensor) -> Tensor:
            latents: Any = function(x)
            expected = (*x.shape[:-1], self.n_latents)
            if not isinstance(latents, Tensor) or latents.shape != expected:
                raise InputError(
                    f"the encoder returns {brief(latents)} for rows of shape {list(x.shape)}; "
                    f"expected {list(expected)}: one value for each of the n_latents on the last "
                    "axis. If yours returns several values, give a function that returns the one"
                )
            return latents

        return checked

    @torch.no_grad()
    def _try(self, width: int) -> None:
        """Run the function once, so that what is wrong with it shows before any image is run."""
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        try:
            self.encode(like.new_zeros(2, width))
        except (RuntimeError, TypeError, IndexError) as error:
            raise InputError(
                f"the encoder does not take rows of {width} features: {error}"
            ) from error


def encoder(
    encode: Encode,
    n_latents: int,
    *,
    pre_activation: Encode | None = None,
    width: int | None = None,
    site: Site | None = None,
) -> CallableEncoder:
    """Return any function from activations to latents as a dictionary that `LayerGradFam` takes.

    Nothing else is asked of it: it may be another library's, a bound method, a module.

    Args:
        encode: takes rows of features (..., width), returns latents (..., n_latents), so that
            gradients pass. It is the code: what `stage="post"` explains.
        n_latents: number of latents.
        pre_activation: the same before the activation function, for `stage="pre"`.
        width: number of features; then the function is tried at once.
        site: where an attached model computes them, for `LayerGradFam.of`; it knows the width.

    Raises:
        InputError: if an argument is none of these, or the function does not return `n_latents`
            values a row (with a width at once, else when it is used).

    Example:
        >>> weight = torch.eye(4, 16)
        >>> own = encoder(lambda x: (x @ weight.T).relu(), n_latents=4, width=16)
        >>> own.encode(torch.ones(2, 16)).shape
        torch.Size([2, 4])
    """
    return CallableEncoder(encode, n_latents, pre_activation, width, site)
