"""The one layer that a writer writes to, as a matrix, and the edit that it becomes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.base import Base
from salve_plugin.control.edit import Edit
from salve_plugin.control.ledger import pristine_of
from salve_plugin.control.locks import locked
from salve_plugin.control.making import edit_at
from salve_plugin.control.matching import base_of
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.slots import slots_of
from salve_plugin.control.targets import view_of
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import HEAD_INPUT, Site


@dataclass(frozen=True, eq=False)
class Layer:
    """A Linear or convolution that reads a site, as it is without edits.

    Edits add to the pristine weight, so what a writer adds is computed from that too.

    Attributes:
        hooked: the attached model.
        site: what the layer reads.
        path: of the layer in the bare model.
        weight: (outputs, inputs); of a convolution the inputs are features times kernel positions.
        bias: (outputs,), or None.
        shape: of the weight itself.
    """

    hooked: HookedModel
    site: Site
    path: str
    weight: Float64[Tensor, "outputs inputs"]
    bias: Float64[Tensor, " outputs"] | None
    shape: tuple[int, ...]

    def output(self, inputs: Float64[Tensor, "rows inputs"]) -> Float64[Tensor, "rows outputs"]:
        """Return what the layer makes of its inputs."""
        product = inputs @ self.weight.T
        return product if self.bias is None else product + self.bias

    def updated(
        self,
        update: LowRankUpdate,
        note: str,
        rows: Sequence[int] | None = None,
    ) -> Edit:
        """Return the edit that updates this layer, `note` saying what wrote it."""
        # A base names what its edit touches, and the bias is touched only where it moves.
        touched = self._paths if update.moves_origin else self._paths[:1]
        base = replace(self.base, tensors={path: self.base.tensors[path] for path in touched})
        return edit_at(
            self.hooked, self.site, update, rows=rows, role="reader", layer=self.path,
            provenance=Provenance("written", note=note), base=base,
        )  # fmt: skip

    @cached_property
    def base(self) -> Base:
        """The base of an edit of weight and bias: all of the model is hashed, once."""
        return base_of(self.hooked, self._paths)

    @property
    def _paths(self) -> list[str]:
        return [f"{self.path}.weight"] + [f"{self.path}.bias"] * (self.bias is not None)


def layer_at(hooked: HookedModel, site: str, layer: str | None = None) -> Layer:
    """Return the layer that reads a site.

    Args:
        hooked: the attached model.
        site: its name.
        layer: path of the layer, needed where several read the site.

    Raises:
        UnknownSiteError: if the model has no such site.
        InputError: if the layer does not read the site, or several do and none is named.
        UnsupportedModelError: if no layer does, or it is none that can be edited.
    """
    _check_attached(hooked)
    own = hooked.site(site)
    if not own.readers:
        raise UnsupportedModelError(
            f"no linear layer is known to read site '{site}' and nothing else; choose one of "
            f"{[name for name, other in hooked.sites.items() if other.readers]}"
        )
    if layer is None and len(own.readers) > 1:
        raise InputError(f"several layers read site '{site}': name one, layer={own.readers[0]!r}")
    path = own.readers[0] if layer is None else layer
    if path not in own.readers:
        raise InputError(f"layer {path!r} does not read site '{site}'; {list(own.readers)} do")
    with locked(hooked) as model:  # an edit that is applied meanwhile must not be seen by half
        module = model.get_submodule(path)
        view_of(path, module)  # refuses what no edit can change
        names = [f"{path}.weight"]
        names += [f"{path}.bias"] if module._parameters.get("bias") is not None else []
        values = [pristine_of(slot).to("cpu") for slot in slots_of(model, names).values()]
    # Of a convolution features come first and kernel positions within them, as in unfolded inputs.
    weight = values[0].double().flatten(1)
    bias = values[1].double() if len(values) > 1 else None
    return Layer(hooked, own, path, weight, bias, tuple(values[0].shape))


def head_of(hooked: HookedModel) -> Layer:
    """Return the classifier's layer.

    Raises:
        UnsupportedModelError: if the logits are not the outputs of just one layer.
        SalveError: as for `layer_at`.
    """
    _check_attached(hooked)
    if list(hooked.heads.values()) != [1.0]:
        raise UnsupportedModelError(
            "a writer writes to a classifier of one layer, whose outputs are the logits; here the "
            f"layers {dict(hooked.heads)} have shares in them. Update them one by one with "
            "salve.edit_at"
        )
    (path,) = hooked.heads
    layer = layer_at(hooked, HEAD_INPUT, path)
    if len(layer.weight) < 2:
        raise UnsupportedModelError(
            f"'{path}' has a single output; writers of the classifier compare classes, so that "
            "there have to be two at least"
        )
    return layer


def _check_attached(hooked: object) -> None:
    if not isinstance(hooked, HookedModel):
        raise InputError(
            f"a writer needs an attached model, got {type(hooked).__name__}: pass "
            "salve.attach(model)"
        )
