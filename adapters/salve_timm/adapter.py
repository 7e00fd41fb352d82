"""timm classifiers with named sites."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from salve_plugin.adapter import Adapter
from salve_plugin.hooks import HookedModel
from salve_plugin.site import HEAD_INPUT, Site
from salve_timm.blocks import body_points
from salve_timm.call_log import CallLog, log_calls, spatial_maps
from salve_timm.create import (
    create_model,
    describe,
    imagenet_names,
    normalization_of,
    transform_of,
)
from salve_timm.export import export_model
from salve_timm.heads import Head, candidates, linear_paths, named_head, proven
from salve_timm.layout import Layouts
from salve_timm.look import attribution_point
from salve_timm.measure import measured
from salve_timm.points import Point
from salve_timm.probe import probed, quiet

if TYPE_CHECKING:
    from PIL.Image import Image


class TimmAdapter(Adapter):
    """Every timm classifier whose logits are linear in the features that its head reads."""

    def matches(self, model: nn.Module) -> bool:
        """Say whether `model`, or a class that it extends, is one of timm's models."""
        return _is_of_timm(model)

    def attach(self, model: nn.Module, *, probe: Tensor | None = None) -> HookedModel:
        """Return the hooked model, its head proven and its sites seen on a probe batch.

        The probe runs in evaluation mode; modes, buffers and gradients are as before afterwards.
        A model with several heads on different inputs gets one site for each: `unembed.hook_in`,
        then `unembed_dist.hook_in` for a distillation head, or `unembed_1.hook_in` and so on.
        `description["input_size"]` is a size that the model accepts: the probe's.
        `description["verified"]` is "values" if the logits were recomputed from the sites, and
        "shapes" on the meta device, where there are no values to compare.

        Args:
            model: a timm model.
            probe: images to probe with; by default a seeded random batch of the model's size.

        Raises:
            UnsupportedModelError: if there is no classifier, or it is not linear in what it reads.
        """
        return _attached(model, candidates(model), probe)

    def attach_by_head(
        self,
        model: nn.Module,
        head: str,
        *,
        blocks: Sequence[str] | None = None,
        probe: Tensor | None = None,
    ) -> HookedModel:
        """Return any hooked model whose logits are the output of the linear layer at `head`.

        It is measured as timm's models are; see `attach`.

        Raises:
            UnsupportedModelError: if no such layer is there, the logits are not its output, or a
                block does not run once on every image.
        """
        return _attached(model, named_head(model, head), probe, blocks)

    def create(
        self, name: str, *, checkpoint: str | None = None, num_classes: int | None = None
    ) -> nn.Module:
        """Build a timm model by name, in eval mode; see `salve_timm.create.create_model`."""
        return create_model(name, checkpoint=checkpoint, num_classes=num_classes)

    def transform(self, model: nn.Module) -> "Callable[[Image], Tensor]":
        """Return timm's evaluation transform for the model."""
        return transform_of(model)

    def class_names(self, model: nn.Module) -> Sequence[Sequence[str]] | None:
        """Return WordNet id, description and first word of each class of an ImageNet model."""
        return imagenet_names(model)

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model as timm loads it; see `salve_timm.export.export_model`."""
        export_model(model, folder)


def _is_of_timm(model: nn.Module) -> bool:
    return any(kind.__module__.startswith("timm.models.") for kind in type(model).__mro__)


def _attached(
    model: nn.Module,
    groups: list[tuple[str, ...]],
    probe: Tensor | None,
    blocks: Sequence[str] | None = None,
) -> HookedModel:
    """Return the hooked model, its classifier proven to be one of the groups of layers."""
    with quiet(model):
        wanted = linear_paths(model, groups)
        probe, log = probed(model, lambda images: log_calls(model, images, wanted), probe)
        heads = proven(model, groups, log, probe)
        # Tokens need their grid; maps show their own, if their sides are equal.
        unclear = (
            len(log.features_shape) != 4
            or probe.shape[-2] != probe.shape[-1]
            or any(len(call.result_shape) == 3 for call in log.calls.values())
        )
        maps = spatial_maps(model, probe) if unclear else []  # one more forward pass
        layouts = Layouts.of(model, maps, probe.shape, log)
        head_points = _head_points(heads, log)
        head_sites = [point.site for point in head_points]
        look = attribution_point(model, log, layouts, head_sites, probe)
        body = measured(model, body_points(model, log, layouts, blocks), log, head_sites, probe)
    points, attribution = _merged(body, look)
    ordered = sorted([*points, *head_points], key=lambda point: point.at)
    return HookedModel(
        model,
        [point.site for point in ordered],
        attribution_site=attribution,
        description=_description(model, heads, probe),
        heads={head.path: head.share for head in heads},
        # Two images, copied: the caller's batch is not kept alive.
        probe=None if probe.is_meta else probe[:2].detach().clone(),
    )


def _head_points(heads: Sequence[Head], log: CallLog) -> list[Point]:
    """Return one point for each tensor that heads read; heads of one tensor share it."""
    by_input: dict[object, list[Head]] = {}
    for head in heads:
        by_input.setdefault(log.calls[head.path].source, []).append(head)
    points: list[Point] = []
    taken: set[str] = set()
    for number, group in enumerate(by_input.values()):
        first = group[0]
        name = HEAD_INPUT
        if number:
            distilled = "dist" in first.path and "unembed_dist.hook_in" not in taken
            name = "unembed_dist.hook_in" if distilled else f"unembed_{number}.hook_in"
        taken.add(name)
        readers = tuple(head.path for head in group)
        site = Site(name, first.path, "in", "pooled", first.width, readers=readers)
        points.append(Point(log.calls[first.path].began, site, log.calls[first.path].source))
    return points


def _merged(points: list[Point], look: Point | None) -> tuple[list[Point], Site | None]:
    """Return the points with the attribution site among them.

    A named point of the same value takes its place: the last stage's output is better known as
    such than as the output of an Identity behind it.
    """
    if look is None:
        return points, None
    same = [point.site for point in points if point.value is not None and point.value == look.value]
    if same:
        return points, same[-1]
    return [*points, look], look.site


def _description(model: nn.Module, heads: Sequence[Head], probe: Tensor) -> Mapping[str, object]:
    channels = int(probe.shape[1])
    normalization = {
        name: [float(value) for value in values]
        for name, values in normalization_of(model).items()
        if len(values) == channels
    }
    described = describe(model)
    # A model of the user's own need not say how many classes it has.
    head: Any = model.get_submodule(heads[0].path)
    return {
        **described,
        "num_classes": described["num_classes"] or len(head.weight),
        "family": "timm" if _is_of_timm(model) else "torch",
        "in_chans": channels,
        "input_size": [int(side) for side in probe.shape[1:]],
        **normalization,
        "classifier": {head.path: head.share for head in heads},
        "verified": "shapes" if probe.is_meta else "values",
    }
