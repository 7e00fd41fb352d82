"""Making edits of an attached model: a latent suppressed or enhanced, or any operator at a site."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from salve_plugin.control.base import Base
from salve_plugin.control.edit import Edit
from salve_plugin.control.exactness import measured, nearest, without_tied
from salve_plugin.control.folds import fold_of
from salve_plugin.control.matching import base_of
from salve_plugin.control.networks import Networks
from salve_plugin.control.operators import Gate, Mode, Operator, Role
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.rows import row_tuple
from salve_plugin.control.targets import Target, targets_at
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.integers import whole
from salve_plugin.network import OnBaseMismatch
from salve_plugin.site import Site


def suppress(
    hooked: HookedModel,
    dictionary: Dictionary,
    *,
    latent: int | Sequence[int],
    strength: float,
    rows: Sequence[int] | None = None,
    base: Base | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
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
        on_base_mismatch: "warn" takes a dictionary of another network too, such as that which the
            model was fine-tuned from.

    Raises:
        InputError: if a latent, the strength or a row is out of range.
        UnknownSiteError: if the model does not have the dictionary's site.
        BaseMismatchError: if the site has another width in this model, or the dictionary was
            learned from another network than the model, as it is or without the edits on it.
        UnsupportedModelError: if no editable layer reads or writes the site, or not it alone.
    """
    # Made before the dictionary is compared: its base has hashed the network already.
    edit = latent_gate(hooked, dictionary, "suppress", latent, strength, rows, base)
    _check_dictionary(hooked, dictionary, edit, on_base_mismatch)
    return edit


def enhance(
    hooked: HookedModel,
    dictionary: Dictionary,
    *,
    latent: int | Sequence[int],
    strength: float,
    rows: Sequence[int] | None = None,
    base: Base | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Edit:
    r"""Return the edit that enhances latents: features scaled by $1+\alpha\,reach_j$.

    Enhancing does not undo suppressing: $(1+\alpha|c|)(1-\alpha|c|) \neq 1$; use `revert_`.
    Arguments and errors as for `suppress`.
    """
    edit = latent_gate(hooked, dictionary, "enhance", latent, strength, rows, base)
    _check_dictionary(hooked, dictionary, edit, on_base_mismatch)
    return edit


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
        rows: outputs of the readers that change; None means all of them. The rows of a
            `LowRankUpdate` are theirs, in the order in which they are given.
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
    place = _site(hooked, site)
    if not isinstance(operator, Operator):
        raise InputError(
            f"operator {operator!r:.200} is none; give a Gate, a LowRankMap or a LowRankUpdate"
        )
    if not isinstance(base, Base | None) or not isinstance(provenance, Provenance | None):
        raise InputError(
            f"base {base!r:.200} and provenance {provenance!r:.200} are to be those of an edit, "
            "edit.base and edit.provenance, or None"
        )
    targets = _targets(hooked, place, operator, role, layer, probe)
    paths = [path for target in targets for path in target.paths]
    # The base of an edit of other parameters has no fingerprints of these.
    known = base is not None and set(base.tensors) == set(paths)
    affine = targets[0].affine
    edit = Edit(
        without_tied(hooked.model, place),
        operator,
        targets,
        base if base is not None and known else base_of(hooked, paths),
        row_tuple(rows),
        provenance or Provenance(),
        fold_of(hooked.model, affine, targets[0].bias, place.width) if affine else None,
    )
    # The call is for its refusal only, which can name a better site here and not when it is
    # applied.
    if edit.fold is not None and isinstance(operator, Gate):
        try:
            operator.writer_bias(edit.fold.shift, edit.fold)
        except InputError as error:
            raise InputError(
                f"{error}. {nearest(hooked, place, operator, edit.role, probe)}"
            ) from None
    if set(place.readers) <= set(hooked.heads) and edit.role == "reader":
        return edit  # attach has proven that the logits are linear in this site
    return replace(edit, exactness=measured(hooked, edit, probe))


def unchanged(hooked: HookedModel, site: Site | str) -> Edit:
    """Return the edit of a head that changes nothing: what others are compared with.

    Raises:
        SalveError: as for `edit_at`.
    """
    # Any unit direction will do: at strength 0 every factor is exactly 1.
    width = _site(hooked, site).width
    return edit_at(hooked, site, Gate(torch.ones(1, width, dtype=torch.float32) / width**0.5, 0.0))


def _site(hooked: HookedModel, site: Site | str) -> Site:
    """Return the model's own site of that name."""
    check_attached(hooked)
    if not isinstance(hooked, HookedModel):
        raise InputError(
            f"an edit is made of an attached model; got {type(hooked).__name__}: pass "
            "salve.attach(model)"
        )
    if not isinstance(site, Site | str):
        raise InputError(f"site {site!r:.200} is no name; choose one of {list(hooked.sites)}")
    # By name only: a site that comes with a dictionary may name layers of another copy of the
    # model.
    own = hooked.site(site if isinstance(site, str) else site.name)
    if isinstance(site, Site) and site.width != own.width:
        raise BaseMismatchError(
            f"site '{site.name}' is given with {site.width} features, but has {own.width} in this "
            "model; pass its name"
        )
    return own


def _targets(
    hooked: HookedModel, site: Site, operator: Operator, role: Role | None, layer: str | None,
    probe: Tensor | None,
) -> tuple[Target, ...]:  # fmt: skip
    try:
        return targets_at(hooked.model, site, operator, role, layer)
    except UnsupportedModelError as error:
        way_out = nearest(hooked, site, operator, role, probe)
        raise UnsupportedModelError(f"{error}. {way_out}") from None


def latent_gate(
    hooked: HookedModel,
    dictionary: Dictionary,
    mode: Mode,
    latent: int | Sequence[int],
    strength: float,
    rows: Sequence[int] | None,
    base: Base | None,
) -> Edit:
    """Return the edit of `suppress` or `enhance`; of which network the dictionary is, is not asked.

    Raises:
        SalveError: as for `suppress`.
    """
    check_attached(hooked)
    if not isinstance(dictionary, Dictionary):
        raise InputError(f"a dictionary was expected, got {type(dictionary).__name__}")
    site = _site(hooked, dictionary.site.name)
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


def _check_dictionary(
    hooked: HookedModel, dictionary: Dictionary, edit: Edit, on_base_mismatch: OnBaseMismatch
) -> None:
    networks = Networks(hooked, on_base_mismatch, pristine=edit.base.network)
    networks.check_either("the dictionary", dictionary.network)


def _latents(latent: int | Sequence[int], dictionary: Dictionary) -> tuple[int, ...]:
    several: Iterable[object] = [latent]
    # Arrays are no Sequence, and one without axes is a single number.
    if isinstance(latent, Sequence) or (isinstance(latent, Tensor | np.ndarray) and latent.ndim):
        several = latent
    latents = tuple(whole(index, "latent") for index in several)
    for index in latents:
        if not 0 <= index < dictionary.n_latents:
            raise InputError(
                f"latent {index} is out of range: the dictionary has {dictionary.n_latents}, "
                f"0 to {dictionary.n_latents - 1}"
            )
    if not latents or len(set(latents)) < len(latents):
        raise InputError(f"latents {list(latents)} must be at least one, each once")
    return latents
