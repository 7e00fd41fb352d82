"""Whether weights reproduce a change of a site's activation: measured on a probe, never assumed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from salve_plugin.control.application import pristine_state
from salve_plugin.control.edited import entries_of
from salve_plugin.control.ledger import ATTRIBUTE, Ledger, composed, index_of, take
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.recipe import Exactness, Recipe, Rows
from salve_plugin.control.targets import Target, slots_of
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel, reading, tapped
from salve_plugin.site import Site

LIMIT = {torch.float32: 1e-5, torch.float64: 1e-9}
"""How far a logit may be off, relative to the spread of the logits, in each precision."""

SHARE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far it may be off relative to the edit's own effect: a weak edit proves nothing by itself."""

PROBE_IMAGES = 2


@torch.no_grad()
def measured(hooked: HookedModel, edit: Recipe, probe: Tensor | None = None) -> Exactness:
    """Compare the edited model with the same change made by a hook; the model is not touched.

    Both run on a copy without edits, in eval mode. Models in half precision, and those whose
    rounding hides the answer in float32, are compared in float64. Compared are the logits, and what
    the classifier reads: a fresh one, whose weights are zero, would hide everything.

    Args:
        hooked: the model that the edit was made for.
        edit: what to measure.
        probe: images (n, channels, height, width) that the model accepts.

    Raises:
        UnsupportedModelError: if the weights do not reproduce the change: something that is not
            linear uses the site too.
        InputError: if the model does not return logits for the probe.
    """
    images = _probe(hooked, probe)
    own = next((p.dtype for p in hooked.model.parameters() if p.is_floating_point()), torch.float32)
    kinds = [own, torch.float64] if own == torch.float32 else [torch.float64]
    # The edit's own site names tied weights once; hooks have to be on all readers.
    site = hooked.sites.get(edit.site.name, edit.site)
    results: list[Exactness] = []
    for kind in kinds:
        outputs = _compared(hooked, edit, site, images, kind)
        results.append(next((each for each in outputs if each.effect), outputs[0]))
        if all(_is_exact(each, kind) for each in outputs):
            return results[0]
    raise UnsupportedModelError(
        f"no change of {list(edit.base.tensors)} reproduces this edit of '{edit.site.name}': the "
        f"logits differ by {results[-1].difference:.2g} of their spread (the edit itself changes "
        f"them by {results[-1].effect:.2g}), so something that is not linear uses the site too. "
        f"{nearest(hooked, edit.site)}"
    )


def nearest(hooked: HookedModel, here: Site) -> str:
    """Return a sentence that names the sites nearest by where permanent edits may be exact."""
    names = list(hooked.sites)
    position = names.index(here.name) if here.name in names else 0
    able = [
        (abs(at - position), name)
        for at, (name, site) in enumerate(hooked.sites.items())
        if name != here.name and (site.readers or site.writers)
    ]
    closest = [name for _, name in sorted(able)[:3]]
    return f"For a permanent edit near it choose one of {closest}"


def _probe(hooked: HookedModel, probe: Tensor | None) -> Tensor:
    """Return the given images, those that the model was attached with, or seeded noise."""
    if probe is None:
        probe = getattr(hooked, "probe", None)
    if probe is not None:
        return probe[:PROBE_IMAGES]
    size = hooked.description.get("input_size")
    if not isinstance(size, list | tuple):
        raise InputError(
            "it is not known which images this model accepts, on which the edit could be "
            "measured; pass probe=images (n, channels, height, width)"
        )
    return torch.randn(PROBE_IMAGES, *size, generator=torch.Generator().manual_seed(0))


def _is_exact(measured: Exactness, kind: torch.dtype) -> bool:
    # Where an edit has no effect at all, as at strength 0, there is nothing to compare.
    small = measured.difference <= max(SHARE[kind] * measured.effect, torch.finfo(kind).eps)
    return small and measured.difference <= LIMIT[kind]


def _compared(
    hooked: HookedModel, edit: Recipe, site: Site, images: Tensor, kind: torch.dtype
) -> list[Exactness]:
    """Return what was measured of the logits, then of each input of the classifier."""
    edited_layers = {target.weight.rpartition(".")[0] for target in edit.targets}
    # A classifier that takes the change over itself reads the same as before.
    heads = [
        hooked.sites[name]
        for name in hooked.head_sites
        if not edited_layers & set(hooked.sites[name].readers)
    ]
    with _pristine_copy(hooked.model, edit, kind) as copy:
        parameter = next(copy.parameters())
        batch = images.to(parameter.device)
        batch = batch.to(kind) if batch.is_floating_point() else batch
        plain = _outputs(copy, heads, batch)
        with _changed(copy, edit, site):
            changed = _outputs(copy, heads, batch)
        _write(copy, edit)
        edited = _outputs(copy, heads, batch)
    name = str(kind).removeprefix("torch.")
    results = []
    for before, wanted, after in zip(plain, changed, edited, strict=True):
        spread = float(before.max() - before.min()) or 1.0
        results.append(
            Exactness(
                float((after - wanted).abs().max()) / spread,
                float((wanted - before).abs().max()) / spread,
                len(images),
                name,
            )
        )
    return results


def _outputs(model: nn.Module, heads: Sequence[Site], images: Tensor) -> list[Tensor]:
    """Return the logits and the inputs of the classifier."""
    with reading(model, heads) as inputs:
        output = model(images)
    first = output[0] if isinstance(output, tuple | list) else output
    outputs = [first, *(inputs[site.name] for site in heads)]
    if not all(isinstance(each, Tensor) and bool(each.isfinite().all()) for each in outputs):
        raise InputError(
            "the model returns no finite tensor for the probe, so that the edit cannot be "
            "measured; pass other images: probe=images"
        )
    return [each.double() for each in outputs]


@contextmanager
def _pristine_copy(model: nn.Module, edit: Recipe, kind: torch.dtype) -> Iterator[nn.Module]:
    """Yield a copy in eval mode and without edits; it shares what it need not change."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    touched = {id(slot.parameter) for slot in slots_of(model, edit.base.tensors).values()}
    shared: dict[int, Any] = {}
    if dtypes <= {kind}:
        shared = {
            id(tensor): tensor
            for tensor in (*model.parameters(), *model.buffers())
            if id(tensor) not in touched
        }
    edited = {id(module) for module in model.modules() if ATTRIBUTE in module.__dict__}
    if edited:
        shared = {}
    copy = deepcopy(model, shared)
    if edited:
        copy.load_state_dict(pristine_state(copy))
    for module in copy.modules():
        module.__dict__.pop(ATTRIBUTE, None)
    yield (copy if dtypes <= {kind} else copy.to(kind)).eval()


def _write(model: nn.Module, edit: Recipe) -> None:
    """Write the edit into a copy's parameters, whatever they are."""
    slots = slots_of(model, edit.base.tensors)

    def rows_of(path: str, rows: Rows) -> Tensor:
        return take(slots[path].parameter.detach(), rows)

    for path, entry in entries_of(edit, rows_of):
        parameter = slots[path].parameter.detach()
        ledger = Ledger((entry,), entry.rows, take(parameter, entry.rows).clone())
        parameter[index_of(entry.rows)] = composed(ledger)


@contextmanager
def _changed(model: nn.Module, edit: Recipe, site: Site) -> Iterator[None]:
    """Make the edit's change by hooks: of the site, or of what some outputs of its readers see."""
    if isinstance(edit.operator, LowRankUpdate):
        with _layer_changed(model, edit.targets[0], _update(edit, edit.operator)):
            yield
        return
    operator, axis = edit.operator, site.channel_axis
    if edit.rows is None and all(target.outputs is None for target in edit.targets):
        with tapped(model, site, lambda x: operator.activation(x, axis)):
            yield
        return
    with _rows_changed(model, edit, site, lambda x: operator.activation(x, axis)):
        yield


@contextmanager
def _rows_changed(
    model: nn.Module, edit: Recipe, site: Site, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let only the edit's outputs of its readers see the changed site."""
    handles = []
    sliced = [target for target in edit.targets if target.outputs is not None]
    layers = dict.fromkeys(site.readers, edit.rows)  # tied ones too, which have no target
    layers |= {target.weight.rpartition(".")[0]: target.rows(edit.rows) for target in sliced}
    for path, rows in layers.items():
        layer = model.get_submodule(path)

        def mixed(
            module: nn.Module, inputs: tuple[Any, ...], output: Tensor, rows: Rows = rows
        ) -> Tensor:
            seen = module.forward(change(inputs[0]))
            axis = 1 if isinstance(module, nn.Conv2d) else output.ndim - 1
            at = torch.tensor(list(range(output.shape[axis]) if rows is None else rows))
            return output.index_copy(axis, at.to(output.device), seen.index_select(axis, at))

        handles.append(layer.register_forward_hook(mixed))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _update(edit: Recipe, operator: LowRankUpdate) -> tuple[Tensor, Tensor | None, Rows]:
    matrix = operator.left.double() @ operator.right.double().T
    return matrix, operator.shift, edit.targets[0].rows(edit.rows)


@contextmanager
def _layer_changed(
    model: nn.Module, target: Target, update: tuple[Tensor, Tensor | None, Rows]
) -> Iterator[None]:
    """Add what an update adds to a layer's output, computed from its input."""
    matrix, shift, rows = update
    layer = model.get_submodule(target.weight.rpartition(".")[0])
    weight = layer.get_parameter("weight")
    change = torch.zeros_like(weight)
    index = index_of(rows)
    change[index] = matrix.reshape(-1, *weight.shape[1:]).to(weight)
    moved = None
    if shift is not None:
        moved = weight.new_zeros(len(weight))
        moved[index] = shift.to(moved)

    def added(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        change_of_output: Tensor = (
            module._conv_forward(inputs[0], change, moved)
            if isinstance(module, nn.Conv2d)
            else functional.linear(inputs[0], change, moved)
        )
        return output + change_of_output

    handle = layer.register_forward_hook(added)
    try:
        yield
    finally:
        handle.remove()
