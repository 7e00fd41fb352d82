"""Controls: dictionaries of the same size and site that a learned one must beat."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS, create
from salve_plugin.discover.reads import check_read
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.rows import RowReader
from salve_plugin.discover.training.start import spherical_kmeans
from salve_plugin.errors import InputError
from salve_plugin.site import Site
from salve_plugin.validate.reconstruction import check_finite
from salve_plugin.validate.stability import SEED_OFFSET, random_atoms

_LEAST_SAMPLE = 4096
_CHUNK = 4096


def control(
    name: str,
    acts: Activations,
    dictionary: Dictionary,
    *,
    k: int,
    seed: int = 0,
    steps: int | None = None,
) -> Dictionary:
    """Return a control for a dictionary: same site and number of latents, k of them active.

    - `random`: random unit atoms, encoder = gain · atoms (the gain that reconstructs best), TopK.
      Nothing is learned but the rows' mean and the gain.
    - `frozen`: random atoms that stay as they are, trained encoder, TopK; such a dictionary comes
      near trained ones on some measures (arXiv 2602.14111).
    - `pca`: principal axes and linear codes, all of them; `pca_topk`: of those codes the k largest
      in absolute value (the k largest positive ones if no learner `abs_topk` is registered).
    - `kmeans`: centroids of spherical k-means of the centred rows, tied encoder as for `random`,
      TopK.
    - `neurons`: the features themselves, z = x.

    A space of D features has no more than D principal axes or neurons: `pca` and `pca_topk` have at
    most D latents, `neurons` has D. All but `frozen` see at most 20 rows for each latent or
    feature.

    Args:
        name: one of those.
        acts: recording that the dictionary was trained on; held-out images are not used.
        dictionary: gives the number of latents, the site, and the batch size and number of steps
            for `frozen`, if its `meta` has them.
        k: active latents of a row.
        seed: of what is random.
        steps: of `frozen`, instead of the dictionary's.

    Raises:
        InputError: if there is no such control, `k` does not fit, the site is another one, or the
            training rows are too few, constant, NaN or infinite.
    """
    if name not in CONTROLS:
        raise InputError(f"no control '{name}'; choose from {list(CONTROLS)}")
    check_read(dictionary, acts)
    if not 1 <= k <= dictionary.n_latents:
        raise InputError(f"k={k} must be from 1 to the number of latents, {dictionary.n_latents}")
    meta = {"control": name, "k": k, "seed": seed, "initialization": _INITIALIZATIONS[name]}
    if name == "frozen":
        baseline = _frozen(acts, dictionary, k, seed, steps)
    elif name == "neurons":
        baseline = neurons(acts.site)
    else:
        rows = _sample(acts, dictionary.n_latents, seed)
        baseline = _BUILDERS[name](rows, acts.site, dictionary.n_latents, k, seed)
    baseline.meta = {**baseline.meta, **meta}
    return baseline


def random_dictionary(
    rows: Float[Tensor, "rows width"], site: Site, n_latents: int, k: int, seed: int
) -> Dictionary:
    """Return the control `random` for these rows.

    Args:
        rows: activations, which give the mean and the gain.
        site: of which they are.
        n_latents: number of atoms.
        k: active latents of a row.
        seed: of the atoms.
    """
    return _tied(random_atoms(n_latents, site.width, seed=seed), rows, site, k)


def kmeans_dictionary(
    rows: Float[Tensor, "rows width"], site: Site, n_latents: int, k: int, seed: int
) -> Dictionary:
    """Return the control `kmeans` for these rows, whose order decides where it starts.

    Arguments as for `random_dictionary`; nothing is random, so that `seed` is not used.
    """
    centred = rows - rows.mean(0)
    centred = centred[torch.linalg.vector_norm(centred, dim=1) > 0]
    return _tied(spherical_kmeans(centred, n_latents), rows, site, k)


def pca_dictionary(
    rows: Float[Tensor, "rows width"],
    site: Site,
    n_latents: int,
    k: int | None = None,
    seed: int = 0,
) -> Dictionary:
    """Return the control `pca`, or with `k` `pca_topk`; nothing in it is random.

    Arguments as for `random_dictionary`; at most `site.width` atoms are made.
    """
    axes = principal_axes(rows)[: min(n_latents, site.width)]
    learner = {"name": "l1", "options": {"l1": 0.0}}
    if k is not None:
        truncating = "abs_topk" if "abs_topk" in LEARNERS else "topk"
        learner = {"name": truncating, "options": {"k": min(k, len(axes))}}
    return _dictionary(axes, axes, rows.mean(0), site, learner)


def neurons(site: Site) -> Dictionary:
    """Return the control `neurons`: codes are the activations."""
    atoms = torch.eye(site.width)
    linear = {"name": "l1", "options": {"l1": 0.0}}
    return _dictionary(atoms, atoms, torch.zeros(site.width), site, linear)


def principal_axes(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "width width"]:
    """Return the eigenvectors of the rows' covariance, largest variance first, in rows."""
    # Centred before the products: where means are large, taking them off the sums would cancel.
    centred = rows.double() - rows.double().mean(0)
    square = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for chunk in torch.split(centred, _CHUNK):
        square += chunk.T @ chunk
    # eigh sorts ascending and returns vectors in columns.
    axes: Tensor = torch.linalg.eigh(square).eigenvectors.T.flip(0)
    return axes.float().contiguous()


def _frozen(
    acts: Activations, dictionary: Dictionary, k: int, seed: int, steps: int | None
) -> Dictionary:
    """Train an encoder for random atoms, as long as the dictionary was trained."""
    # Learners without an optimizer note 0 steps: nothing to keep up with.
    budget: dict[str, Any] = {
        name: value
        for name in ("steps", "batch_size")
        if isinstance(value := dictionary.meta.get(name), int) and value > 0
    }
    if steps is not None:
        budget |= {"steps": steps, "learning_rate": 1e-3}  # else it is searched for
    with warnings.catch_warnings():
        # That many of its latents are dead is no advice for the dictionary that it is a control of.
        warnings.simplefilter("ignore", UserWarning)
        return fit(
            acts, "topk", n_latents=dictionary.n_latents, seed=SEED_OFFSET + seed,
            initialization="random", train_atoms=False, k=k, **budget,
        )  # fmt: skip


def _sample(acts: Activations, n_latents: int, seed: int) -> Tensor:
    """Return training rows in random order, 20 for each latent or feature."""
    # k-means and the covariance need some rows for each thing that they estimate, not all.
    size = max(_LEAST_SAMPLE, 20 * max(n_latents, acts.width))
    rows = next(RowReader(acts, None).training(size, shuffle_seed=seed), torch.zeros(0, acts.width))
    if len(rows) < 2:
        raise InputError(f"{len(rows)} training rows are too few for a control; record more images")
    check_finite(rows, f"activations of '{acts.site.name}'")
    return rows


def _tied(atoms: Tensor, rows: Tensor, site: Site, k: int) -> Dictionary:
    """Return the TopK dictionary with encoder gain · atoms, of the gain that reconstructs best."""
    mean = rows.mean(0)
    learner = {"name": "topk", "options": {"k": k}}
    unscaled = _dictionary(atoms, atoms, mean, site, learner)
    # The least-squares factor of the unscaled reconstructions about the mean.
    product = square = 0.0
    for chunk in torch.split(rows, _CHUNK):
        back = (unscaled(chunk) - mean).double()
        product += float((back * (chunk - mean)).sum())
        square += float(back.square().sum())
    # The gain changes sizes, not which latents are the largest, so one pass finds it.
    gain = product / square if square > 0 else 1.0
    return _dictionary(atoms, gain * atoms, mean, site, learner)


def _dictionary(
    atoms: Tensor, encoder: Tensor, mean: Tensor, site: Site, learner: Mapping[str, Any]
) -> Dictionary:
    """Return the dictionary that encodes the distance from `mean`."""
    tensors = {
        "atoms": atoms,
        "encoder_weight": encoder,
        "encoder_bias": -(encoder @ mean),
        "decoder_bias": mean,
    }
    return Dictionary(tensors, create(learner["name"], learner["options"]), site)


def _all_axes(rows: Tensor, site: Site, n_latents: int, k: int, seed: int) -> Dictionary:
    return pca_dictionary(rows, site, n_latents)


_BUILDERS: Mapping[str, Callable[[Tensor, Site, int, int, int], Dictionary]] = {
    "random": random_dictionary,
    "pca": _all_axes,
    "pca_topk": pca_dictionary,
    "kmeans": kmeans_dictionary,
}

_INITIALIZATIONS = {
    "random": "random", "frozen": "random", "pca": "none", "pca_topk": "none", "kmeans": "rows",
    "neurons": "none",
}  # fmt: skip

CONTROLS = tuple(_INITIALIZATIONS)
"""Names of the controls."""
