"""Edits of an attached model along an atom of a dictionary: suppressing and enhancing a latent."""

from collections.abc import Sequence

from salve_plugin.control.application import pristine_fingerprint
from salve_plugin.control.base import Base, find_readers, plain_json
from salve_plugin.control.edit import Edit, row_tuple
from salve_plugin.control.operators import Mode
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site


def suppress(
    hooked: HookedModel,
    dictionary: Dictionary,
    *,
    latent: int,
    strength: float,
    rows: Sequence[int] | None = None,
) -> Edit:
    r"""Return the edit that suppresses a latent: columns scaled by $\max(0, 1-\alpha|c_j|)$.

    Nothing is changed yet: `edit.apply_(model)` does that.

    Args:
        hooked: the attached model; every layer that reads the dictionary's site is edited.
        dictionary: where the atom $c$ comes from.
        latent: which atom.
        strength: $\alpha \ge 0$; for a head, `alpha_crit` tells how much is needed.
        rows: outputs (classes) whose weights change; None means all of them (the paper's edit).

    Raises:
        InputError: if the latent, the strength or a row is out of range.
        UnknownSiteError: if the model does not have the dictionary's site.
        BaseMismatchError: if the site has another width in this model.
        UnsupportedModelError: if no editable layer reads the site.
    """
    return _make(hooked, dictionary, "suppress", latent, strength, rows)


def enhance(
    hooked: HookedModel,
    dictionary: Dictionary,
    *,
    latent: int,
    strength: float,
    rows: Sequence[int] | None = None,
) -> Edit:
    r"""Return the edit that enhances a latent: columns scaled by $1+\alpha|c_j|$.

    Enhancing does not undo suppressing: $(1+\alpha|c|)(1-\alpha|c|) \neq 1$; use `revert_`.
    Arguments and errors as for `suppress`.
    """
    return _make(hooked, dictionary, "enhance", latent, strength, rows)


def _make(
    hooked: HookedModel,
    dictionary: Dictionary,
    mode: Mode,
    latent: int,
    strength: float,
    rows: Sequence[int] | None,
) -> Edit:
    site = hooked.site(dictionary.site.name)
    if not site.width == dictionary.site.width == dictionary.width:
        raise BaseMismatchError(
            f"the dictionary reads {dictionary.width} features at '{site.name}', where this model "
            f"has {site.width}; use the model that the dictionary was trained on"
        )
    if isinstance(latent, bool) or not 0 <= latent < dictionary.n_latents:
        raise InputError(
            f"latent {latent} is out of range: the dictionary has {dictionary.n_latents}, "
            f"0 to {dictionary.n_latents - 1}"
        )
    return Edit(
        site=site,
        operator="scale",
        mode=mode,
        latent=latent,
        direction=dictionary.atoms[latent],
        strength=float(strength),
        rows=row_tuple(rows),
        base=base_of(hooked, site),
        dictionary_digest=dictionary.digest,
    )


def base_of(hooked: HookedModel, site: Site) -> Base:
    """Return the base of an edit at `site`: the weights are fingerprinted without any edit.

    Raises:
        UnsupportedModelError: if no layer reads the site, or one that cannot be edited.
        BaseMismatchError: if a layer that reads the site has another width.
    """
    if not site.readers:
        raise UnsupportedModelError(
            f"no linear layer reads site '{site.name}', so there is no weight to scale; choose one "
            f"of {[other.name for other in hooked.sites.values() if other.readers]}"
        )
    readers = find_readers(hooked.model, [f"{reader}.weight" for reader in site.readers])
    for reader in readers:
        if reader.matrix.shape[1] != site.width:
            raise BaseMismatchError(
                f"'{reader.path}' reads {reader.matrix.shape[1]} features, but site '{site.name}' "
                f"has {site.width}"
            )
    return Base(
        plain_json(hooked.description),
        {reader.path: pristine_fingerprint(reader) for reader in readers},
    )
