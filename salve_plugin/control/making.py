"""Making edits of an attached model: a latent suppressed or enhanced, or any operator at a site."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from salve_plugin.control.application import base_of
from salve_plugin.control.base import Base
from salve_plugin.control.edit import Edit
from salve_plugin.control.exactness import measured, nearest
from salve_plugin.control.operators import Gate, Mode, Operator, Role
from salve_plugin.control.recipe import Provenance
from salve_plugin.control.targets import Target, fold_of, targets_at
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site


def suppress(
    hooked: HookedModel,
    dictionary: Dictionary,
    *,
    latent: int | Sequence[int],
    strength: float,
    rows: Sequence[int] | None = None,
    base: Base | None = None,
) -> Edit:
    r"""Return the edit that suppresses latents: features scaled by $\max(0, 1-\alpha\,reach_j)$.

    The reach of one latent is $|c_j|$, that of several $\sqrt{\sum_l c_{lj}^2}$. Nothing is changed
    yet: `edit.apply_(model)` does that.

    Args:
        hooked: the attached model; every layer that reads the dictionary's site is edited, or the
            one that writes it if no readers are known.
        dictionary: where the atoms $c$ come from.
        latent: which atom, or several.
        strength: $\alpha \ge 0$; for a head, `alpha_crit` tells how much is needed.
        rows: outputs (classes) whose weights change; None means all of them (the paper's edit).
        base: that of another edit of the same model and site, to save hashing the model again.

    Raises:
        InputError: if a latent, the strength or a row is out of range.
        UnknownSiteError: if the model does not have the dictionary's site.
        BaseMismatchError: if the site has another width in this model.
        UnsupportedModelError: if no editable layer reads or writes the site, or not it alone.
    """
    return _gate(hooked, dictionary, "suppress", latent, strength, rows, base)


def enhance(
    hooked: HookedModel,
    dictionary: Dictionary,
    *,
    latent: int | Sequence[int],
    strength: float,
    rows: Sequence[int] | None = None,
    base: Base | None = None,
) -> Edit:
    r"""Return the edit that enhances latents: features scaled by $1+\alpha\,reach_j$.

    Enhancing does not undo suppressing: $(1+\alpha|c|)(1-\alpha|c|) \neq 1$; use `revert_`.
    Arguments and errors as for `suppress`.
    """
    return _gate(hooked, dictionary, "enhance", latent, strength, rows, base)


def edit_at(
    hooked: HookedModel,
    site: Site | str,
    operator: Operator,
    *,
    rows: Sequence[int] | None = None,
    role: Role | None = None,
    layer: str | None = None,
    provenance: Provenance | None = None,
    probe: Tensor | None = None,
    base: Base | None = None,
) -> Edit:
    """Return the permanent edit that does to a site what the operator says.

    The layers that read the site take it over, or the one that writes it. An edit of a hidden site
    is measured before it is returned: logits of the edited model against the same change made by a
    hook, on a probe (`Edit.exactness`).

    Args:
        hooked: the attached model; it is not changed.
        site: a site of the model, by name. For a `LowRankUpdate`, one that a single layer reads
            (or, with role "writer", writes): that layer is updated.
        operator: a `Gate`, `LowRankMap` or `LowRankUpdate`.
        rows: outputs of the readers that change; None means all of them.
        role: "reader" or "writer", to insist on one; by default readers if they are known.
        layer: which of several readers a `LowRankUpdate` changes.
        provenance: where the operator comes from.
        probe: images (n, channels, height, width); by default those the model was attached with.
        base: that of another edit of the same parameters of the same model, to save hashing.

    Raises:
        UnknownSiteError: if the model has no such site.
        InputError: if the operator does not fit the site, or a row is out of range.
        UnsupportedModelError: if no weights can take the change over exactly; the message names the
            nearest sites where some can.
    """
    place = hooked.site(site if isinstance(site, str) else site.name)
    targets = _targets(hooked, place, operator, role, layer)
    paths = [path for target in targets for path in target.paths]
    known = base is not None and set(base.tensors) == set(paths)
    affine = targets[0].affine
    edit = Edit(
        _without_tied(hooked.model, place),
        operator,
        targets,
        base if base is not None and known else base_of(hooked, paths),
        None if rows is None else tuple(rows),
        provenance or Provenance(),
        fold_of(hooked.model, affine, targets[0].bias, place.width) if affine else None,
    )
    if set(place.readers) <= set(hooked.heads) and edit.role == "reader":
        return edit  # attach has proven that the logits are linear in this site
    return replace(edit, exactness=measured(hooked, edit, probe))


def _without_tied(model: nn.Module, site: Site) -> Site:
    """Return the site with each tied weight's reader named once."""
    names: dict[int, str] = {}
    for path in site.readers:
        names.setdefault(id(model.get_submodule(path)._parameters.get("weight")), path)
    return replace(site, readers=tuple(names.values()))


def _targets(
    hooked: HookedModel, site: Site, operator: Operator, role: Role | None, layer: str | None
) -> tuple[Target, ...]:
    try:
        return targets_at(hooked.model, site, operator, role, layer)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error}. {nearest(hooked, site)}") from None


def _gate(
    hooked: HookedModel,
    dictionary: Dictionary,
    mode: Mode,
    latent: int | Sequence[int],
    strength: float,
    rows: Sequence[int] | None,
    base: Base | None,
) -> Edit:
    site = hooked.site(dictionary.site.name)
    if not site.width == dictionary.site.width == dictionary.width:
        raise BaseMismatchError(
            f"the dictionary reads {dictionary.width} features at '{site.name}', where this model "
            f"has {site.width}; use the model that the dictionary was trained on"
        )
    latents = _latents(latent, dictionary)
    gate = Gate(dictionary.atoms[list(latents)], strength, mode)
    digest = dictionary.digest
    return edit_at(
        hooked, site, gate, rows=rows, base=base,
        provenance=Provenance("latents", latents, digest),
    )  # fmt: skip


def _latents(latent: int | Sequence[int], dictionary: Dictionary) -> tuple[int, ...]:
    several = tuple(latent) if isinstance(latent, Sequence) else (latent,)
    for one in several:
        if isinstance(one, bool) or not hasattr(one, "__index__"):
            raise InputError(f"latent {one!r} is no integer")
        if not 0 <= one.__index__() < dictionary.n_latents:
            raise InputError(
                f"latent {one} is out of range: the dictionary has {dictionary.n_latents}, "
                f"0 to {dictionary.n_latents - 1}"
            )
    if not several or len(set(several)) < len(several):
        raise InputError(f"latents {list(several)} must be at least one, each once")
    return tuple(one.__index__() for one in several)
