"""Codes by position: where a latent is active, every position coded by itself.

Grad-FAM weights channels by what they do to a latent of the whole image. Here the dictionary reads
each position p instead, as if the image were made of it alone:

    map(p) = sum over l of w_l z_l(p),        z(p) = encode(s A(p))

For a class the weight is what the latent does to its logit at that very position, e_l(p) of
`salve_plugin.validate.contribution`, so that the map is gradient times code.

At a site that is a map itself A is the activation there and s = 1. At a pooled site x = Σ_p a_p
A(p) and s = Σ_p a_p, which is 1 for an average: the rows s A(p) have x for their weighted mean, so
that the dictionary's own mean and scale, which are those of x, are the right ones for each of them.
For an affine encoder the weighted mean of the map is then the latent of the image, and the map is
Grad-FAM's but for a constant and a factor; a sparse code is another at every position.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from captum.log import log_usage
from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import AttributionError
from salve_plugin.validate.contribution import Contribution
from salve_plugin.validate.effects import effects_of, most_contributing
from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.latent_trace import Trace
from salve_plugin.validate.latents import LatentTarget, Stage, image_latents
from salve_plugin.validate.layout import as_map
from salve_plugin.validate.linear_pooling import position_weights
from salve_plugin.validate.module_sides import side_name
from salve_plugin.validate.tracing import joined
from salve_plugin.validate.weighted_maps import finished


class LayerCodeMap(LayerGradFam):
    """The codes of a layer's positions; a Captum layer attribution.

    It is made as `LayerGradFam` is, and leaves the model as that does. The layer is the
    dictionary's site, where that has positions, or a map whose linear pooling the site is.
    """

    default_stage: ClassVar[Stage] = "post"

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator] # captum is untyped
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: LatentTarget = None,
        additional_forward_args: object | None = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Return the map of the target, (batch, 1, h, w), detached, in float32 or wider.

        Args:
            inputs: as in `LayerGradFam.attribute`, as are the next three.
            target: the latent, one for each image, or a weighted sum.
            additional_forward_args: passed to the model after the inputs.
            attribute_to_layer_input: look at the layer's (first) input instead of its output.
            relu_attributions: keep only the positive part of the map.
            attr_dim_summation: takes no effect, for there are no channels; it stands here, as does
                the next, so that the signature is Captum's.
            grad_kwargs: takes no effect.

        Raises:
            InputError: as `LayerGradFam.attribute`.
            AttributionError: if the site is no linear pooling of the layer; or as
                `LayerGradFam.attribute`.
            HookNotFiredError: if the forward pass does not run the layer or the site.
        """
        with self._traced(inputs, additional_forward_args, attribute_to_layer_input) as trace:
            rows = self._rows(trace)
            if isinstance(target, Contribution):
                maps = self._contributed(trace, rows, target)
            else:
                maps = self._summed(trace, rows, target)
        return finished(maps.reshape(len(rows), 1, *rows.shape[2:]), relu=relu_attributions)

    def _summed(
        self, trace: Trace, rows: Float[Tensor, "batch width h w"], target: LatentTarget
    ) -> Float[Tensor, "batch positions"]:
        """Return the weighted sum of the codes."""
        maps: list[Tensor] = []
        weights = None
        for number, row in enumerate(rows):  # one image's codes at a time, or memory would go
            with torch.no_grad():
                codes = image_latents(self.dictionary, row.flatten(1).T, 1, self.stage)
            if weights is None:
                weights = self._weights(trace, target, codes.shape[1]).to(codes)
            maps.append(codes @ weights[number])
        return torch.stack(maps)

    def _contributed(
        self, trace: Trace, rows: Float[Tensor, "batch width h w"], target: Contribution
    ) -> Float[Tensor, "batch positions"]:
        """Return what the codes of the most contributing latents add to the class."""
        gradient = self._class_gradient(trace, target)
        # With positions, each has a gradient of its own.
        if trace.layer == self.site:
            gradient = as_map(gradient, trace.tokens())
        # A pooled site has one gradient, which is every row's but for its weight in the mean.
        gradient = gradient.reshape(*rows.shape[:2], -1).expand(-1, -1, rows[0, 0].numel())
        maps = []
        for row, pulled in zip(rows, gradient, strict=True):
            codes, effects = effects_of(self.dictionary, row.flatten(1).T[None], pulled.T[None])
            added = codes * effects
            kept = most_contributing(added.sum(1), target.top)
            maps.append((added * kept[:, None]).sum(2)[0])
        return torch.stack(maps)

    def _rows(self, trace: Trace) -> Float[Tensor, "batch width h w"]:
        """Return what the dictionary reads at each position."""
        tokens = trace.tokens()
        rows = as_map(joined(trace.graph.layer), tokens)
        if trace.layer == self.site:
            return rows
        _, axis = self._features(trace)
        pooling = position_weights(trace.graph, tokens, axis)
        if pooling is None:
            raise AttributionError(_not_pooled(trace, self.site[0]))
        # As if all of the pooled image were this position: then the dictionary's bias suits it.
        return rows * pooling.sum().to(rows)


def code_maps(
    fam: LayerCodeMap, inputs: Tensor | tuple[Tensor, ...]
) -> Iterator[Float[Tensor, "latents h w"]]:
    """Yield the maps of all latents, image by image, each as `fam.attribute` gives it.

    Args:
        fam: says model, layer, dictionary, site and stage.
        inputs: images, or the model's several inputs, batch first.

    Raises:
        SalveError: as `LayerCodeMap.attribute`.
    """
    with fam._traced(inputs, None) as trace:
        rows = fam._rows(trace).detach()
    for row in rows:
        with torch.no_grad():
            codes = image_latents(fam.dictionary, row.flatten(1).T, 1, fam.stage)
        yield codes.T.reshape(-1, *row.shape[1:])


def _not_pooled(trace: Trace, site: torch.nn.Module) -> str:
    return (
        f"the dictionary's site, at {type(site).__name__}, is no weighted mean over the positions "
        f"of the {side_name(trace.layer)} of {type(trace.layer[0]).__name__} (another pooling, a "
        "norm or a layer lies between), so its positions cannot be coded one by one. Use "
        "LayerGradFam, which needs no such pooling, or learn a dictionary at a site that has "
        "positions: salve.record(hooked, loader, site)"
    )
