"""MEMIT: many keys at once, their change spread over several layers."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from salve_plugin.control.edit import Edit
from salve_plugin.control.folds import fold_of
from salve_plugin.control.ledger import pristine_of
from salve_plugin.control.locks import locked
from salve_plugin.control.matching import edited_slots
from salve_plugin.control.writers.associations import check_new, vectors, written_update
from salve_plugin.control.writers.evidence import RIDGE, second_moment
from salve_plugin.control.writers.layer import Layer, layer_at
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, evaluating, reading
from salve_plugin.images import as_input, refused_in_words
from salve_plugin.kinds import several
from salve_plugin.network import OnBaseMismatch
from salve_plugin.site import Site

PRESERVATION = 0.05
"""One key alone is written but for 0.05 / 1.05 of its change, whatever the scale and width."""


def memit(
    hooked: HookedModel,
    sites: Sequence[str] | str,
    keys: Float[Tensor, "keys inputs"] | Sequence[Tensor],
    values: Float[Tensor, "keys outputs"],
    second_moments: Sequence[Activations | Tensor] | Activations | Tensor,
    *,
    at: str | None = None,
    preservation: float = PRESERVATION,
    ridge: float = RIDGE,
    on_base_mismatch: OnBaseMismatch = "error",
) -> tuple[Edit, ...]:
    r"""Return edits, one a layer, by which the last layer gives a value for each of several keys.

    For each layer l of L in forward order: $\Delta_l = R_l K_l^T (\lambda C_l + K_l K_l^T)^{-1}$,
    where $R_l$ is what is then still missing of the values, divided by the number of layers to go,
    and $K_l$ what the layer then reads (Meng et al. 2023, arXiv 2210.07229, Eq. 14 and Alg. 1).

    $\lambda$ there is a number of recorded tokens, fit for one network. Here it is in units of the
    mean of $k^T C^{-1} k$ over the keys: `preservation` p writes a single key up to $p/(1+p)$ of
    its change at any scale; near 0 the keys are written exactly, far above 1 nothing is.

    Args:
        hooked: the attached model; nothing is applied.
        sites: what the layers read, in forward order, each read by one layer.
        keys: for one site the keys themselves, (keys, inputs), as of `class_association`. For
            several, a list with a batch of images (n, channels, height, width) for each key: the
            key is the mean input over images and positions (class and register tokens among them),
            taken anew at each layer, after the edits before it.
        values: what the mean output is to be for each key.
        second_moments: for each site its recording or matrix, as for `rome`.
        at: where several layers' changes add up, such as `blocks.5.hook_resid_post`: the site whose
            mean is to become the values. None: the last layer's own output.
        preservation: see above.
        ridge: as for `rome`.
        on_base_mismatch: "warn" takes recordings of another network.

    Raises:
        SalveError: as for `rome`.
        InputError: if keys, values and second moments do not go together, or `preservation` is 0
            and keys are linearly dependent.
    """
    names = [sites] if isinstance(sites, str) else several(sites, "sites", "names of sites")
    moments = (
        [second_moments]
        if isinstance(second_moments, Activations | Tensor)
        else several(second_moments, "second_moments", "a recording or matrix for each site")
    )
    layers = [layer_at(hooked, name) for name in names]
    if not layers or len(set(names)) < len(names) or len(moments) != len(layers):
        raise InputError(
            f"sites {[*names]} are to be at least one, each once, with a second moment each; got "
            f"{len(moments)}"
        )
    if isinstance(keys, Tensor) and (len(layers) > 1 or at is not None):
        raise InputError(
            "keys of several layers, or with values at another site, are read from the network: "
            "give a list with a batch of images for each key"
        )
    reader = _Reader(hooked, keys, hooked.site(at) if at is not None else None)
    updates = []
    wanted: Tensor | None = None
    for number, (layer, moment) in enumerate(zip(layers, moments, strict=True)):
        own_keys, current = reader.read(layer, layers[-1])
        if wanted is None:
            wanted = vectors(values, "values", current.shape[1], count=len(own_keys))
            check_new(layers[-1], wanted - current)
        # Missing is measured anew, since later layers react to what earlier ones have written: what
        # those failed to bring about is asked of the rest.
        residuals = (wanted - current) / (len(layers) - number)
        update = written_update(
            own_keys,
            # The output reaches the residual sum multiplied by the LayerScale behind the layer:
            # what is to arrive there is divided by it before it is written.
            residuals if at is None else residuals / _scale_behind(layer),
            second_moment(layer, moment, on_base_mismatch),
            preservation=preservation,
            ridge=ridge,
        )
        # Later keys are what the network with this update gives.
        reader.write(layer, update.left @ update.right.T)
        updates.append(update)
    note = f"written by MEMIT: {len(own_keys)} keys in {len(layers)} layers, preservation "
    note += f"{preservation:g}, ridge {ridge:g}"
    return tuple(layer.updated(update, note) for layer, update in zip(layers, updates, strict=True))


def _scale_behind(layer: Layer) -> Tensor:
    """Return by what a LayerScale multiplies a layer's outputs on their way to the residual sum."""
    for site in layer.hooked.sites.values():
        if layer.path in site.writers and site.affine:
            return fold_of(layer.hooked.model, site.affine, None, site.width).scale
    return torch.ones(1, dtype=torch.float64)


class _Reader:
    """Reads keys and outputs in the network with the updates so far, without touching it."""

    def __init__(
        self, hooked: HookedModel, keys: Tensor | Sequence[Tensor], at: Site | None
    ) -> None:
        kind = "a tensor (keys, inputs), or a batch of images for each key"
        batches = () if isinstance(keys, Tensor) else several(keys, "keys", kind)
        images = all(isinstance(each, Tensor) and each.ndim == 4 and len(each) for each in batches)
        if not images or not (batches or isinstance(keys, Tensor)):
            raise InputError(
                "keys are to be a tensor (keys, inputs), or a list with a batch of images (n, "
                "channels, height, width) for each"
            )
        self._hooked, self._keys, self._batches, self._at = hooked, keys, batches, at
        # What is written is added to the pristine weights, so keys are read without edits, too.
        with locked(hooked) as model:
            self._weights = {slot.path: pristine_of(slot).clone() for slot in edited_slots(model)}

    def write(self, layer: Layer, change: Tensor) -> None:
        """Add to a layer's weight from now on."""
        path = f"{layer.path}.weight"
        weight = self._weights.get(path)
        weight = self._hooked.model.get_parameter(path).detach() if weight is None else weight
        self._weights[path] = weight + change.reshape(weight.shape).to(weight)

    def read(self, layer: Layer, last: Layer) -> tuple[Tensor, Tensor]:
        """Return the keys of one layer, (keys, inputs), and what they give, (keys, outputs)."""
        if not self._batches:
            keys = vectors(self._keys, "keys", layer.weight.shape[1])
            return keys, last.output(keys)
        sites = {site.name: site for site in (layer.site, self._at or last.site)}
        means = [self._means(list(sites.values()), batch) for batch in self._batches]
        keys = torch.stack([mean[layer.site.name] for mean in means])
        keys = vectors(keys, "keys", layer.weight.shape[1])
        if self._at is not None:
            return keys, torch.stack([mean[self._at.name] for mean in means])
        # The mean output of a linear layer is its output for the mean input.
        return keys, last.output(torch.stack([mean[last.site.name] for mean in means]))

    @torch.no_grad()
    def _means(self, sites: Sequence[Site], images: Tensor) -> dict[str, Tensor]:
        model = self._hooked.model
        images = as_input(model, images)
        with (
            evaluating(model),
            reading(model, sites) as activations,
            refused_in_words(model, images, "images"),
        ):
            functional_call(model, self._weights, (images,))
        return {
            site.name: site.rows(activations[site.name]).double().mean(0).cpu() for site in sites
        }
