"""Grad-FAM: where in the image a latent of a dictionary comes from.

Gradient-weighted feature activation mapping is Grad-CAM (Selvaraju et al. 2017, Eq. 1-2) with a
latent z_l of a sparse dictionary in the place of a class score:

    weight_k = mean over positions p of dz_l / dA_k(p)        map(p) = sum over k of weight_k A_k(p)

For a dictionary with an affine encoder E on globally average-pooled features, weight_k is
E[l, k] / (h w), and the map sums to z_l - z_l(0): what the image adds to the latent.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from captum.attr import LayerAttribution
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from jaxtyping import Float
from torch import Tensor

from salve_plugin.control.networks import Networks
from salve_plugin.errors import AttributionError, InputError
from salve_plugin.hooks import HookedModel, SiteLike, check_attached
from salve_plugin.network import OnBaseMismatch
from salve_plugin.site import Site
from salve_plugin.validate.class_gradient import class_gradient, class_rows
from salve_plugin.validate.contribution import Contribution
from salve_plugin.validate.effects import effects_of, most_contributing
from salve_plugin.validate.latent_trace import Trace, arguments_of, one_module, tracing
from salve_plugin.validate.latents import (
    Encodes,
    LatentTarget,
    Stage,
    check_encodes,
    image_latents,
    is_weighted,
    latent_index,
    latent_weights,
)
from salve_plugin.validate.layout import (
    Tokens,
    as_map,
    checked_tokens,
    has_positions,
    likely_axis,
    site_axis,
)
from salve_plugin.validate.module_sides import (
    NamedActivation,
    as_module_side,
    layer_tokens,
    readable,
    trained_at,
    unnamed,
)
from salve_plugin.validate.tracing import joined, pull_back
from salve_plugin.validate.weighted_maps import (
    finished,
    no_dependence,
    no_gradient,
    weighted_map,
)

if TYPE_CHECKING:
    from salve_plugin.discover.dictionary import Dictionary
    from salve_plugin.validate.encoder import CallableEncoder


class LayerGradFam(LayerAttribution, GradientAttribution):  # type: ignore[misc] # captum is untyped
    """Grad-FAM of any module, with or without an adapter; a Captum layer attribution.

    The model runs in eval mode. Nothing of it or of the caller's is changed: tensors, buffers,
    gradients, hooks, training modes. It can be called in any grad mode, and in half precision: the
    latent, the weights and the map are computed in float32 at least.

    With `captum.attr.NoiseTunnel` it works as any other method. `captum.concept.TCAV` needs
    `interpret(..., attr_dim_summation=False)` and layers that are NCHW maps: it compares with the
    flattened layer, whose order of channels and positions is another for tokens and NHWC.

    Attributes:
        forward_func: the model or a function that runs it.
        layer: the module that is explained; may be reassigned to one of the same layout, whose
            output is explained then.
        dictionary: turns the site's activation into latents.
        site: (module, "in" or "out"), the activation that the dictionary reads.
        stage: "pre" explains the pre-activation latent, "post" the code.
        tokens: the layer's layout, as in the constructor.
    """

    default_stage: ClassVar[Stage] = "pre"

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: NamedActivation,
        dictionary: Encodes,
        *,
        site: NamedActivation,
        stage: Stage | None = None,
        tokens: Tokens = None,
        device_ids: list[int] | None = None,
    ) -> None:
        """Name the layer to look at and the latents to explain.

        Args:
            forward_func: the model or a function that runs it.
            layer: the activation (a map or tokens) that is explained: a module, for its output; a
                module and "in" for its first input or "out"; or a `Site` of the model, which
                brings its layout along. The path of a module, or the name of an attached model's
                site, stands for it.
            dictionary: any module or object with `encode(x)` from rows (..., width) to latents
                (..., latents), for `stage="post"`, and `pre_activation(x)` likewise for "pre", such
                as a `Dictionary` or what `encoder` makes of a function. A `width` that it has is
                compared; it computes in its own parameters' type.
            site: the activation that the dictionary reads, in the same ways. A `Site` says where
                its features are. Otherwise they are on the last axis or, in a 4-d map, on the one
                that is as long as the dictionary is wide; if axes 1 and 3 both are, the
                dictionary's own `site` settles it. With positions, the latent is its mean over
                them all.
            stage: "pre" for the pre-activation latent, "post" for the code, whose gradient is zero
                where the latent is off; by default "pre" ("post" in `LayerCodeMap`).
            tokens: layout of the layer: None for an NCHW map, "NHWC", or (prefix count, (h, w));
                to be left out if the layer is a `Site`.
            device_ids: order of the devices, if forward_func wraps a DataParallel model.

        Raises:
            InputError: if an argument is not of the form above, or two contradict each other.
            AttributionError: if the layer is a `Site` without positions.

        Example:
            >>> own = encoder(sae.encode, n_latents=512)                        # doctest: +SKIP
            >>> fam = LayerGradFam(net, "stage4", own, site="mlp", stage="post") # doctest: +SKIP
            >>> heat = fam.attribute(images, target=7)                          # doctest: +SKIP
        """
        layer = unnamed(layer, forward_func, "layer")
        site = unnamed(site, forward_func, "site")
        module, side = as_module_side(layer, forward_func, "layer")
        LayerAttribution.__init__(self, forward_func, module, device_ids)
        GradientAttribution.__init__(self, forward_func)
        stage = self.default_stage if stage is None else stage
        # Before anything is run: what it lacks would show in the middle of a pass.
        check_encodes(dictionary, stage)
        self.dictionary = dictionary
        self.site = as_module_side(site, forward_func, "site")
        self._site = readable(site, dictionary) if isinstance(site, Site) else None
        self.stage: Stage = stage
        self.tokens = layer_tokens(layer, checked_tokens(tokens))
        self._grid_is_given = not isinstance(layer, Site)
        self._hooked = forward_func if isinstance(forward_func, HookedModel) else None
        # Bound to this module: a layer that is assigned later, as TCAV does, means its output.
        self._explains_input_of = module if side == "in" else None

    @classmethod
    def of(
        cls,
        hooked: HookedModel,
        dictionary: "Dictionary | CallableEncoder",
        *,
        layer: SiteLike | None = None,
        stage: Stage | None = None,
        on_base_mismatch: OnBaseMismatch = "error",
    ) -> "LayerGradFam":
        """Return the attribution of a dictionary of an attached model.

        Args:
            hooked: the attached model.
            dictionary: its `site` must be one of the model's.
            layer: where to look, as `HookedModel.site` takes it. By default the model's attribution
                site, or the dictionary's own site if that has positions.
            stage: "pre" or "post", by default as in the constructor.
            on_base_mismatch: "warn" takes a dictionary of another network too, such as that which
                the model was fine-tuned from.

        Raises:
            BaseMismatchError: if the dictionary was learned from another network than the model, as
                it is or without the edits on it.
            UnknownSiteError: if the model lacks the layer or the dictionary's site.
            InputError: if the dictionary reads another number of features than its site has, or
                was trained on another layout of it.
            AttributionError: if there is no map or patch grid to look at.

        Example:
            >>> fam = LayerGradFam.of(hooked, sae)              # doctest: +SKIP
            >>> heat = fam.attribute(images, target=latent)     # doctest: +SKIP
        """
        check_attached(hooked)
        own_site = trained_at(dictionary)
        if own_site is None:
            raise InputError(
                f"{type(dictionary).__name__} does not say which site it reads; use "
                "salve.encoder(function, n_latents=..., site=hooked.site(name)), or the "
                "constructor: LayerGradFam(hooked, layer, dictionary, site=...)"
            )
        site = readable(hooked.site(own_site.name), dictionary)
        Networks(hooked, on_base_mismatch).check_either(
            "the dictionary", getattr(dictionary, "network", None)
        )
        if layer is None:
            layer = hooked.attribution_site if site.layout == "pooled" else site
        elif not isinstance(layer, Site):
            layer = hooked.site(layer)
        if layer is None or not has_positions(layer):
            shown = [name for name, site_shown in hooked.sites.items() if has_positions(site_shown)]
            subject = f"site '{layer.name}' ({layer.layout})" if layer else "what the adapter knows"
            raise AttributionError(
                f"{subject} has no feature map or patch grid to show; pass layer=, one of {shown}, "
                "or use the LayerGradFam constructor with the module of your choice"
            )
        attribution = cls(hooked.model, layer, dictionary, site=site, stage=stage)
        # The bare model runs; which layers classify is known to the attached one alone.
        attribution._hooked = hooked
        return attribution

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
        """Return the heat map of the target, (batch, 1, h, w), detached, in float32 or wider.

        Where the latent's own gradient is zero (an encoder row of zeros; with stage "post", a
        latent that is off) the map is zero.

        Args:
            inputs: images, or the model's several inputs, batch first.
            target: the latent: an int, or one per image as a tensor or list. Or a weighted sum:
                `{latent: weight}`, a floating-point tensor (latents,) or (batch, latents), or
                `salve.contribution(label)`, the latents that a class's logit is made of.
            additional_forward_args: passed to the model after the inputs.
            attribute_to_layer_input: explain the layer's (first) input instead of its output.
            relu_attributions: keep only the positive part of the map.
            attr_dim_summation: False keeps the channels: (batch, K, h, w).
            grad_kwargs: passed to `torch.autograd.grad`.

        Raises:
            InputError: if the model does not take the inputs, the target is not a latent of the
                dictionary, the site's width or the layer's layout is not the one given, or the
                site's layout is not certain.
            AttributionError: if the latent does not depend on the layer, or on none of its
                positions, as for class-token pooling at the output of the last block; or if the
                map is not finite, the layer runs several times in a forward pass, or it is in train
                mode and forward_func does not show which model to put into eval mode.
            HookNotFiredError: if the forward pass does not run the layer or the site.
        """
        with self._traced(inputs, additional_forward_args, attribute_to_layer_input) as trace:
            latent_gradient = self._latent_gradient(trace, target)
            layer_gradient = pull_back(trace.graph, latent_gradient, grad_kwargs or {})
        if layer_gradient is None:
            raise AttributionError(no_dependence(trace.layer))
        tokens = trace.tokens()
        gradient = as_map(layer_gradient, tokens)
        # Dead or off, a latent's own gradient is zero, and so is its map, rightly. But where the
        # latent has one and no position of the layer does, a map would be a lie.
        if not gradient.any() and latent_gradient.any():
            raise AttributionError(no_gradient(trace.layer))
        heat = weighted_map(as_map(joined(trace.graph.layer), tokens), gradient)
        return finished(heat, relu=relu_attributions, summed=attr_dim_summation)

    def _traced(
        self, inputs: object, additional_forward_args: object, explains_input: bool = False
    ) -> AbstractContextManager[Trace]:
        """Run the model in eval mode and keep the graph from the layer to the site."""
        explains_input = explains_input or self.layer is self._explains_input_of
        return tracing(
            self.forward_func,
            (one_module(self.layer), "in" if explains_input else "out"),
            self.site,
            arguments_of(self.forward_func, inputs, additional_forward_args),
            self.device_ids,
            tokens=self.tokens,
            grid_is_given=self._grid_is_given,
        )

    def _latent_gradient(self, trace: Trace, target: LatentTarget) -> Tensor:
        """Return the gradient of the target at the site, batch first, in float32 or wider."""
        features, axis = self._features(trace)
        # Detached, so that the pass's own graph stays for the second half of the chain, in its own
        # type.
        features.requires_grad_()
        with torch.enable_grad():
            latents = image_latents(self.dictionary, features, axis, self.stage)
            weights = self._weights(trace, target, latents.shape[1])
            chosen = latents * weights.to(latents)
            # No image's latent depends on another image, so the sum's gradient is each one's own.
            (gradient,) = torch.autograd.grad(chosen.sum(), features, materialize_grads=True)
        return gradient

    def _features(self, trace: Trace) -> tuple[Tensor, int]:
        """Return the site's activation, in float32 or wider, and the axis of its features."""
        features = joined(trace.graph.site).detach()
        # In float16 the encoder row itself could overflow.
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        shape = tuple(features.shape)
        if self._site is not None:
            return features, site_axis(shape, self._site)
        width, trained_site = getattr(self.dictionary, "width", None), trained_at(self.dictionary)
        is_layer = trace.layer == self.site
        return features, likely_axis(shape, width, self.tokens, trained_site, is_layer=is_layer)

    def _weights(
        self, trace: Trace, target: LatentTarget, n_latents: int
    ) -> Float[Tensor, "batch latents"]:
        """Return the weight of each latent in each image."""
        batch = len(joined(trace.graph.site))
        if isinstance(target, Contribution):
            features, axis = self._features(trace)
            pulled = self._class_gradient(trace, target).movedim(axis, -1)
            codes, effects = effects_of(self.dictionary, features.movedim(axis, -1), pulled)
            kept = most_contributing((codes * effects).sum(1), target.top)
            return effects.sum(1) * kept
        if is_weighted(target):
            return latent_weights(target, batch, n_latents)
        # One-hot weights: then one latent and a weighted sum take the same way.
        index = latent_index(target, batch, n_latents)
        return torch.zeros(batch, n_latents).scatter_(1, index[:, None], 1.0)

    def _class_gradient(self, trace: Trace, target: Contribution) -> Tensor:
        """Return the gradient of each image's class at the site, as the site is laid out."""
        hooked, (features, _) = self._hooked, self._features(trace)
        if hooked is None:
            raise InputError(
                "a contribution needs to know the classifier; make the attribution with "
                "LayerGradFam.of(hooked, dictionary), or weight the latents yourself: "
                "target={latent: weight}"
            )
        rows = class_rows(hooked)
        own = rows[target.classes(hooked, len(features), len(rows))]
        return class_gradient(hooked, self.site, features, own, trace.run, trace.device_ids)


GradFAM = LayerGradFam
