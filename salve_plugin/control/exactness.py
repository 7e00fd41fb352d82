"""Whether weights reproduce a change of a site's activation: measured on a probe, never assumed."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from salve_plugin.control.base import Base, Fingerprint, dtype_name
from salve_plugin.control.edited import entries_of
from salve_plugin.control.folds import fold_of
from salve_plugin.control.formula import Ledger, composed
from salve_plugin.control.hooked_change import changed_by_hooks
from salve_plugin.control.ledger import ATTRIBUTE, pristine_of
from salve_plugin.control.matching import edited_slots
from salve_plugin.control.operators import Gate, LowRankMap, LowRankUpdate, Operator, Role
from salve_plugin.control.provenance import Exactness
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import Rows, index_of, take
from salve_plugin.control.slots import slots_of
from salve_plugin.control.targets import targets_at
from salve_plugin.errors import InputError, SalveError, UnsupportedModelError
from salve_plugin.hooks import HookedModel, reading
from salve_plugin.modes import without_autocast
from salve_plugin.site import Site

LIMIT = {torch.float32: 1e-5, torch.float64: 1e-9}
"""How far a logit may be off, relative to the spread of the logits, in each precision."""

SHARE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far it may be off relative to the edit's own effect: a weak edit proves nothing by itself."""

FLOOR = {torch.float32: 0.0, torch.float64: 1e-13}
"""What rounding alone may do: where float32 rounds more than its share, float64 has to tell."""

FAINT = 1e-10
"""An effect below this proves nothing in float64 either: a stronger edit is measured, too."""

PROBE_IMAGES = 2

TRIES, NAMED = 2, 2
"""How many sites of one kind a refusal tries, and how many sites it names at most."""


@torch.no_grad()
def measured(hooked: HookedModel, edit: Recipe, probe: Tensor | None = None) -> Exactness:
    """Compare the edited model with the same change made by a hook; the model is not touched.

    Both run on a copy without edits, in eval mode. Models in half precision, and those whose
    rounding hides the answer in float32, are compared in float64. Compared are the logits, and what
    the classifier reads: a fresh one, whose weights are zero, would hide everything. Where the edit
    does next to nothing, as at strength 0, one of the same directions that does is compared, too.

    Args:
        hooked: the model that the edit was made for.
        edit: what to measure.
        probe: images (n, channels, height, width) that the model accepts.

    Raises:
        UnsupportedModelError: if the weights do not reproduce the change: something that is not
            linear uses the site too.
        InputError: if the probe is no batch of images, or the model does not return logits for it.
    """
    images = _probe(hooked, probe)
    result, exact = _measured(hooked, edit, images)
    if exact and result.effect < FAINT:
        _, exact = _measured(hooked, replace(edit, operator=_stronger(edit.operator)), images)
    if exact:
        return result
    site = hooked.sites.get(edit.site.name, edit.site)
    raise UnsupportedModelError(
        f"no change of {list(edit.base.tensors)} reproduces this edit of '{edit.site.name}': the "
        f"logits differ by {result.difference:.2g} of their spread (the edit itself changes "
        f"them by {result.effect:.2g}), so something that is not linear uses the site too. "
        f"{nearest(hooked, site, edit.operator, edit.role, images)}"
    )


def _measured(hooked: HookedModel, edit: Recipe, images: Tensor) -> tuple[Exactness, bool]:
    """Return what was measured, and whether it is exact: in float32 if that can tell."""
    own = next((p.dtype for p in hooked.model.parameters() if p.is_floating_point()), torch.float32)
    kinds = [own, torch.float64] if own == torch.float32 else [torch.float64]
    # The edit's own site names tied weights once; hooks have to be on all readers.
    site = hooked.sites.get(edit.site.name, edit.site)
    results: list[Exactness] = []
    for kind in kinds:
        outputs = _compared(hooked, edit, site, images, kind)
        # Of the logits, if the edit shows there. Behind a fresh classifier with zero weights it
        # does not, and then the first input of the classifier on which it acts is what was
        # measured.
        results.append(next((output for output in outputs if output.effect), outputs[0]))
        if all(_is_exact(output, kind) for output in outputs):
            return results[0], True
    return results[-1], False


def _stronger(operator: Operator) -> Operator:
    """Return the operator with the same directions that does as much as it can."""
    if isinstance(operator, Gate):
        return replace(operator, strength=1 / float(operator.reach.max()))
    if isinstance(operator, LowRankMap):
        # At scale 1 no bias was asked for, so that an offset could not be taken over.
        offset = operator.offset if operator.moves_origin else torch.zeros_like(operator.offset)
        return replace(operator, scale=0.0, offset=offset)
    return operator


@torch.no_grad()
def nearest(
    hooked: HookedModel,
    here: Site,
    operator: Operator,
    refused: Role | None = None,
    images: Tensor | None = None,
) -> str:
    """Return a sentence that names the nearest sites where a permanent edit like it is exact.

    Found by making one with a direction of its own; nothing is named that was only supposed to be.

    Args:
        hooked: the attached model.
        here: the site where the edit is not exact.
        operator: of the form that is wanted, with or without an offset.
        refused: the role that was refused here; by default the one that is preferred.
        images: a probe; by default the model's own.
    """
    names = list(hooked.sites)
    position = names.index(here.name) if here.name in names else 0
    refused = refused or _preferred(here)
    tried: Counter[tuple[str, Role]] = Counter()
    closest: list[str] = []
    for name in sorted(names, key=lambda name: abs(names.index(name) - position)):
        site = hooked.sites[name]
        roles: list[Role] = ["reader"] if site.readers else []
        roles += ["writer"] if site.writers else []
        for role in roles:
            # Most sites of one kind share their reasons: a few are enough to try.
            kind = re.sub(r"[0-9]+", "", name), role
            if tried[kind] >= TRIES or (name == here.name and role == refused):
                continue
            tried[kind] += 1
            if takes(hooked, site, operator, role, images):
                preferred = role == _preferred(site)
                closest.append(name if preferred else f"{name} with role='{role}'")
                break
        if len(closest) == NAMED:
            break
    if not closest:
        return "No other site of this model takes a permanent edit of this form"
    return f"For a permanent edit of this form near it choose one of {closest}"


def _preferred(site: Site) -> Role:
    """Return the side that is changed where nobody insists on one."""
    return "reader" if site.readers else "writer"


@torch.no_grad()
def takes(
    hooked: HookedModel, site: Site, like: Operator, role: Role, images: Tensor | None = None
) -> bool:
    """Say whether an operator like this one is exact at a site: measured, on a copy.

    Args:
        hooked: the attached model.
        site: of it.
        like: of the form that is wanted, with or without an offset.
        role: which layers are to take it over.
        images: a probe; by default the model's own.
    """
    ones = torch.ones(site.width, 1, dtype=torch.float64) / site.width**0.5
    operator: Operator = LowRankMap(ones, ones, torch.zeros(1))
    if isinstance(like, Gate):
        operator = Gate(ones.T, 1.0)
    elif like.moves_origin and not isinstance(like, LowRankUpdate):
        operator = LowRankMap(ones, ones, torch.ones(1))
    try:
        targets = targets_at(hooked.model, site, operator, role)
        slots = slots_of(hooked.model, {path for target in targets for path in target.paths})
        # No fingerprint is compared here: the recipe is tried on a copy and then thrown away.
        prints = {
            path: Fingerprint(tuple(slot.parameter.shape), dtype_name(slot.parameter), "0" * 64)
            for path, slot in slots.items()
        }
        affine, bias = targets[0].affine, targets[0].bias
        edit = Recipe(
            without_tied(hooked.model, site), operator, targets, Base({}, prints),
            fold=fold_of(hooked.model, affine, bias, site.width) if affine else None,
        )  # fmt: skip
        # The classifier was proven linear in its input by `attach`, so that nothing is left to
        # measure.
        if set(site.readers) <= set(hooked.heads) and role == "reader":
            return True
        return _measured(hooked, edit, _probe(hooked, images))[1]
    except SalveError:
        return False


def without_tied(model: nn.Module, site: Site) -> Site:
    """Return the site with each tied weight's reader named once."""
    names: dict[int, str] = {}
    for path in site.readers:
        names.setdefault(id(model.get_submodule(path)._parameters.get("weight")), path)
    return replace(site, readers=tuple(names.values()))


def _probe(hooked: HookedModel, probe: Tensor | None) -> Tensor:
    """Return the given images, those that the model was attached with, or seeded noise."""
    if probe is None:
        probe = getattr(hooked, "probe", None)
    if probe is not None:
        usable = isinstance(probe, Tensor) and probe.ndim and len(probe) and not probe.is_meta
        if not usable:
            raise InputError(
                f"probe {probe!r:.200} is no batch of images; give a tensor (n, channels, height, "
                "width) with at least one image"
            )
        return probe[:PROBE_IMAGES]
    size = hooked.description.get("input_size")
    if not isinstance(size, list | tuple):
        raise InputError(
            "it is not known which images this model accepts, on which the edit could be "
            "measured; pass probe=images (n, channels, height, width)"
        )
    # A generator of its own: the caller's random numbers stay where they are.
    random = torch.Generator().manual_seed(0)
    return torch.randn(PROBE_IMAGES, *size, generator=random, dtype=torch.float32)


def _is_exact(measured: Exactness, kind: torch.dtype) -> bool:
    small = measured.difference <= max(SHARE[kind] * measured.effect, FLOOR[kind])
    return small and measured.difference <= LIMIT[kind]


# Autocast would compute another type than is noted, and keep the weights of before the edit.
@without_autocast()
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
        try:
            plain = _outputs(copy, heads, batch)
        # Errors of this library say what is wrong already, and some of them are ValueErrors too.
        except SalveError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
            raise InputError(
                f"the model does not accept the probe of shape {list(batch.shape)}, on which the "
                f"edit is measured: {error}; pass others: probe=images"
            ) from error
        with changed_by_hooks(copy, edit, site):
            changed = _outputs(copy, heads, batch)
        # Last, as the copy is changed for good.
        _write(copy, edit)
        edited = _outputs(copy, heads, batch)
    name = str(kind).removeprefix("torch.")
    results = []
    for before, wanted, after in zip(plain, changed, edited, strict=True):
        # A relative measure, since logits have no common scale. If they are all equal the
        # differences count as they are.
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
    if not all(isinstance(part, Tensor) and bool(part.isfinite().all()) for part in outputs):
        raise InputError(
            "the model returns no finite tensor for the probe, so that the edit cannot be "
            "measured; pass other images: probe=images"
        )
    # On the CPU first: not every device has float64.
    return [part.cpu().double() for part in outputs]


@contextmanager
def _pristine_copy(model: nn.Module, edit: Recipe, kind: torch.dtype) -> Iterator[nn.Module]:
    """Yield a copy in eval mode and without edits; it shares what it need not change."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    slots = [*slots_of(model, edit.base.tensors).values(), *edited_slots(model)]
    changing = {id(slot.parameter) for slot in slots}
    # `deepcopy` takes its memo for what has been copied already, so that a parameter which the memo
    # holds under its id is shared with the original.
    shared: dict[int, Any] = {}
    if dtypes <= {kind}:  # never buffers: some models write to theirs in eval mode
        shared = {id(own): own for own in model.parameters() if id(own) not in changing}
    try:
        copy = deepcopy(model, shared)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied, so that no edit of a hidden site can be "
            f"measured: {error}; drop what hooks or caches have left in it"
        ) from error
    # In this order: the ledgers know the pristine rows, and go after these are back.
    for slot in edited_slots(copy):
        slot.parameter.detach().copy_(pristine_of(slot))
    for module in copy.modules():
        module.__dict__.pop(ATTRIBUTE, None)
    # A cast replaces the data of every parameter in place, so that it must never meet a shared one:
    # the memo is empty wherever a cast follows.
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
