"""COAR-Edit: the components that a few images' outputs rest on are found and set to zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import functional_call

from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import check_logits
from salve_plugin.control.solving import check_labels
from salve_plugin.control.writers.attribution import Margins, attribute, margins_of, separation
from salve_plugin.control.writers.evidence import Recorded, class_indices, head_inputs
from salve_plugin.control.writers.layer import Layer, head_of, layer_at
from salve_plugin.control.writers.zeroing import zeroed_inputs, zeroed_outputs
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.hooks import HookedModel, evaluating
from salve_plugin.images import as_input, refused_in_words
from salve_plugin.integers import seed_number, whole
from salve_plugin.network import OnBaseMismatch

Effect = Literal["lower", "raise"]


@dataclass(frozen=True, eq=False)
class ComponentEdit:
    """The edit that zeroes components, and why those.

    Attributes:
        edit: sets the components' weights to zero.
        components: which, the most telling first.
        scores: t-score of every component, (components,): how much more it adds to the target's
            margins than to the others'.
        fidelity: correlation of the attribution's predictions with what ablations really did, on
            masks that were held out; near 0 the scores mean nothing.
    """

    __repr__ = one_line

    edit: Edit
    components: tuple[int, ...]
    scores: Float64[Tensor, " components"]
    fidelity: float


def coar(
    hooked: HookedModel,
    data: Recorded,
    target: int | str | Sequence[int | str] | Tensor,
    *,
    effect: Effect = "lower",
    top: int = 10,
    layer: str | None = None,
    masks: int = 2000,
    keep: float = 0.95,
    ridge: float = 1e-3,
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> ComponentEdit:
    """Find by component attribution what the target's margins rest on, and zero it.

    Components are ablated at random; the margin of each image's own class over the best other one
    is regressed on what was left (Shah et al. 2024, arXiv 2404.11534; here by ridge, in closed form
    for all images at once). The `top` components that add more to the target's margins than to
    others' are set to zero, exactly; to raise the margins, those that take most away from them.

    Args:
        hooked: the attached model; nothing is applied.
        data: a recording of the head's input, or (inputs, labels): components are then the head's
            input features, zeroed for all classes. With `layer`, (images, labels): components are
            that layer's outputs (filters), with their biases, and every mask is one pass of the
            network over the images, so give few.
        target: the class or classes whose images count as target, or a truth value for each image.
        effect: what happens to the target's margins, "lower" or "raise".
        top: how many components are zeroed.
        layer: path of a layer that reads a site, for components within the network.
        masks: how many ablations are tried, a tenth of them held out.
        keep: share of components that an ablation leaves.
        ridge: of the regression, relative; 0 needs more masks than components.
        seed: of the masks.
        on_base_mismatch: "warn" takes a recording of another network.

    Raises:
        BaseMismatchError: if the recording is of another network than the model as it is.
        InputError: if there are not two images of the target and two others at least, or a value is
            out of range.
        UnsupportedModelError: if the classifier is not one layer, or no layer of this path reads a
            site.
    """
    seed = seed_number(seed)
    if effect not in ("lower", "raise"):
        raise InputError(f"effect {effect!r} is unknown; choose 'lower' or 'raise'")
    head = head_of(hooked)  # margins are differences of its outputs, whatever is ablated
    if layer is None:
        own = head
        x, labels = head_inputs(head, data, on_base_mismatch)
        margins = _head_margins(own, x, labels)
        # A neuron that every class reads alike moves no margin, and one that is never on nothing.
        adds = x.any(0) & (own.weight != own.weight[0]).any(0)
    else:
        own = _layer_of(hooked, layer)
        images, labels = _images(data, len(head.weight))
        margins, adds = _network_margins(own, images, labels), own.weight.any(1)
        adds = adds if own.bias is None else adds | own.bias.bool()
    components = len(adds)
    if not 1 <= whole(top, "top") < components:
        raise InputError(f"top {top} is to be from 1 to below the {components} components")
    of_target = _of_target(target, labels, head, data)
    # In eval mode, or drop-out and batch statistics would change margins beside the mask.
    with evaluating(hooked.model):
        attribution = attribute(margins, components, masks=masks, keep=keep, ridge=ridge, seed=seed)
    # What is known to add nothing adds 0: what the regression leaves to it is chance, but chance
    # that all images share, which a t-score takes for a difference.
    effects = torch.where(adds[:, None], attribution.effects, 0.0)
    scores = separation(effects, of_target)
    # Stable, so that equal scores give the same edit everywhere.
    order = scores.argsort(descending=effect == "lower", stable=True)
    chosen = order[:top].tolist()
    note = (
        f"written by COAR-Edit: {top} of {components} components of '{own.path}' zeroed to "
        f"{effect} {int(of_target.sum())} images' margins; fidelity {attribution.fidelity:.3f}"
    )
    if layer is None:
        edit = zeroed_inputs(own, sorted(chosen), note)
    else:
        edit = zeroed_outputs(own, sorted(chosen), note, bias=True)
    return ComponentEdit(edit, tuple(chosen), scores, attribution.fidelity)


def _head_margins(head: Layer, x: Tensor, labels: Tensor) -> Margins:
    whole = head.output(x)

    def margins(mask: Tensor) -> Tensor:
        # What is ablated is the smaller part: it is taken off, not the rest added up.
        off = (~mask).nonzero()[:, 0]
        return margins_of(whole - x[:, off] @ head.weight[:, off].T, labels)

    return margins


def _network_margins(layer: Layer, images: Tensor, labels: Tensor) -> Margins:
    model = layer.hooked.model
    module = model.get_submodule(layer.path)
    parameters = {
        f"{layer.path}.{name}": parameter.detach()
        for name, parameter in module.named_parameters(recurse=False)
    }
    device = next(iter(parameters.values())).device
    images = as_input(model, images)

    @torch.no_grad()
    def margins(mask: Tensor) -> Tensor:
        # The network with other parameters, not with changed ones: nothing is to be put back.
        # The first axis of weight and bias alike is the output, so that one mask takes a filter
        # together with its bias.
        left = mask.to(device)
        ablated = {
            path: value * left.view(-1, *[1] * (value.ndim - 1)).to(value)
            for path, value in parameters.items()
        }
        with refused_in_words(model, images, "images"):
            logits = functional_call(model, ablated, (images,))
        check_logits(logits, len(images))
        return margins_of(logits.cpu().double(), labels)

    return margins


def _layer_of(hooked: HookedModel, path: str) -> Layer:
    for name, site in hooked.sites.items():
        if path in site.readers:
            return layer_at(hooked, name, path)
    readers = sorted({reader for site in hooked.sites.values() for reader in site.readers})
    raise InputError(f"layer {path!r} reads no site of this model; choose one of {readers[:50]}")


def _images(data: Recorded, classes: int) -> tuple[Tensor, Tensor]:
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(p, Tensor) for p in data):
        images, labels = data
        fits = images.ndim == 4 and len(images) and labels.shape == images.shape[:1]
        if fits and not labels.is_floating_point():
            check_labels(labels, classes)
            return images, labels.cpu().long()
    raise InputError(
        "components within the network are ablated on images: give (images (n, channels, height, "
        f"width), labels (n,)) with at least one, not {type(data).__name__}"
    )


def _of_target(target: object, labels: Tensor, head: Layer, data: object) -> Tensor:
    if isinstance(target, Tensor) and target.dtype == torch.bool:
        if target.shape != labels.shape:
            raise InputError(
                f"target has {list(target.shape)} truth values for {len(labels)} images; give one "
                "each"
            )
        return target.cpu()
    recording = data if isinstance(data, Activations) else None
    classes = class_indices(target, head, recording)  # type: ignore[arg-type] # checks it itself
    return torch.isin(labels, torch.tensor(classes))
