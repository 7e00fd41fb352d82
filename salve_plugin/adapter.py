"""What a model family must offer, and how the installed families are found."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from salve_plugin.control.base import bare
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.faces.one_line import listed, shortened
from salve_plugin.hooks import HookedModel
from salve_plugin.kinds import of_kind

if TYPE_CHECKING:
    from PIL.Image import Image

ENTRY_POINT_GROUP = "salve_plugin.adapters"


class Adapter(ABC):
    """Names the modules of one model family that SALVE reads and edits."""

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Say whether this adapter knows `model`'s family (not whether it can be edited)."""

    @abstractmethod
    def attach(self, model: nn.Module, *, probe: Tensor | None = None) -> HookedModel:
        """Return the hooked model, verified on a probe batch; `model` itself is left untouched.

        Args:
            model: a model that this adapter matches.
            probe: images to verify with; by default the adapter makes its own.

        Raises:
            UnsupportedModelError: if there is no classifier that can be read and edited.
        """

    def attach_by_head(
        self,
        model: nn.Module,
        head: str,
        *,
        blocks: Sequence[str] | None = None,
        probe: Tensor | None = None,
    ) -> HookedModel:
        """Return any hooked model whose classifier is the linear layer at `head`, verified.

        Args:
            model: the bare model.
            head: path of the classifier's linear layer.
            blocks: paths of the modules that are its blocks; None to look for them.
            probe: images to verify with.

        Raises:
            UnsupportedModelError: if this adapter knows its own families only, or the logits are
                not that layer's output.
        """
        raise UnsupportedModelError(
            f"{type(self).__name__} attaches to its own families only; leave head out"
        )

    @abstractmethod
    def create(
        self, name: str, *, checkpoint: str | None = None, num_classes: int | None = None
    ) -> nn.Module:
        """Build a model of this family by name, in eval mode, for the command line.

        Args:
            name: as the family's own library calls it.
            checkpoint: path of a state dict to load; without it the family's own pretrained
                weights are loaded.
            num_classes: size of the classifier, if it is not the family's own.

        Raises:
            UnsupportedModelError: if the family has no such model, or no weights for it.
            ReadError: if the weights cannot be read.
            InputError: if the checkpoint does not fit the model.
        """

    @abstractmethod
    def transform(self, model: nn.Module) -> "Callable[[Image], Tensor]":
        """Return the preprocessing that `model` was trained with, from image to (C, H, W)."""

    def class_names(self, model: nn.Module) -> Sequence[Sequence[str]] | None:
        """Return the names that each class of `model` is known by, the plainest last.

        None if the family does not know them, as for a classifier of the user's own.
        """
        return None

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model as its own library loads it from the Hub; `model` stays as it is.

        That is `config.json` and `model.safetensors`, whose tensors have the names of the model's
        state dict. What was written is loaded again and compared before this returns.

        Args:
            model: a bare model that this adapter matches.
            folder: exists and is empty.

        Raises:
            UnsupportedModelError: if the family has no such layout, or loading it would give
                another model.
            WriteError: if the disk is full or the folder cannot be written.
        """
        raise UnsupportedModelError(
            f"{type(self).__name__} cannot write {type(model).__name__} for the Hub; share the "
            "edit without the model: artifact.push_to_hub(...)"
        )


def installed_adapters() -> dict[str, Adapter]:
    """Return one instance of every installed adapter whose library is there, by name.

    Raises:
        UnsupportedModelError: if two packages offer different adapters under one name.
    """
    return dict(_discovered()[0])


def missing_adapters() -> dict[str, str]:
    """Return the installed adapters that cannot be imported, by name, with the reason."""
    return dict(_discovered()[1])


@cache
def _discovered() -> tuple[dict[str, Adapter], dict[str, str]]:
    loaded: dict[str, Adapter] = {}
    missing: dict[str, str] = {}
    for name, point in _by_name(list(entry_points(group=ENTRY_POINT_GROUP))).items():
        try:
            # An adapter whose library is missing is no error here: it is named if nothing else
            # knows a model.
            loaded[name] = point.load()()
        except ImportError as error:
            missing[name] = str(error)
    return loaded, missing


def _by_name(points: list[EntryPoint]) -> dict[str, EntryPoint]:
    """Return the entry points by name; a second, different one under a name is refused."""
    named: dict[str, EntryPoint] = {}
    for point in points:
        earlier = named.setdefault(point.name, point)
        if earlier.value != point.value:
            raise UnsupportedModelError(
                f"two adapters are installed under the name '{point.name}': '{earlier.value}' and "
                f"'{point.value}'. Uninstall one, or have its author rename its entry point in "
                f"'{ENTRY_POINT_GROUP}'"
            )
    return named


def attach(
    model: nn.Module,
    *,
    head: str | nn.Module | None = None,
    blocks: Sequence[str | nn.Module] | None = None,
    probe: Tensor | None = None,
) -> HookedModel:
    """Return `model` with named sites; `model` itself is left untouched.

    Where transformer_lens is installed the result is a `HookedRootModule` of its own. What
    DataParallel, DistributedDataParallel and torch.compile put around a model is taken off.

    Args:
        model: a model of a family for which an adapter is installed, or any with `head`.
        head: the linear layer whose output the logits are, for a model of your own, or its path. It
            is verified on the probe, as are the sites that are found with it.
        blocks: with `head`, the modules whose outputs (and whose insides, where they are known) are
            to be sites, or their paths, in forward order: number i is `blocks.i.hook_resid_post`.
            By default they are looked for.
        probe: images (n, channels, height, width) to find and verify the sites with; needed only
            if the adapter cannot guess what the model accepts.

    Raises:
        UnsupportedModelError: if no installed adapter knows it, if several do, if it has no
            editable classifier, if it is TorchScript, or if a block does not run once on every
            image.
        InputError: if blocks are given without a head.

    Example:
        >>> hooked = attach(timm.create_model("resnet18"))                      # doctest: +SKIP
        >>> hooked = attach(net, head="fc", blocks=["stem", net.stage1])        # doctest: +SKIP
    """
    # Paths of sites and heads are those of the bare model: a wrapper would put a prefix before
    # each.
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"attach() takes a torch.nn.Module, not {type(model).__name__}; build the model first, "
            "e.g. timm.create_model('resnet18', pretrained=True)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "TorchScript runs no hooks inside of a model; attach the model that it was made from, "
            "as it was before torch.jit.trace or torch.jit.script"
        )
    if probe is not None:
        of_kind(probe, torch.Tensor, "probe", "images (n, channels, height, width)")
    if head is None:
        if blocks is not None:
            raise InputError(
                "blocks are for a model of your own: name its classifier too, attach(model, "
                "head=..., blocks=...); those of a known family are found"
            )
        return _with_lens_if_installed(adapter_of(model).attach(model, probe=probe))
    path = _path_of(model, head)
    if path is None:
        linear = [path for path, part in model.named_modules() if isinstance(part, nn.Linear)]
        raise UnsupportedModelError(
            f"{type(model).__name__} has no module {shortened(repr(head), 80)}; head is the "
            f"classifier's linear layer or its path, such as one of {linear[-5:]}"
        )
    paths = None if blocks is None else [_block_path(model, block) for block in blocks]
    adapter = _any_adapter(model)
    # An adapter that knows of no blocks is not asked for any.
    named = {} if paths is None else {"blocks": paths}
    return _with_lens_if_installed(adapter.attach_by_head(model, path, **named, probe=probe))


def _path_of(model: nn.Module, part: object) -> str | None:
    """Return the path of a module, given itself or by its path; None if the model has none such."""
    return next(
        (path for path, module in model.named_modules() if path and part in (path, module)), None
    )


def _block_path(model: nn.Module, block: object) -> str:
    path = _path_of(model, block)
    if path is None:
        paths = [path for path, _ in model.named_modules() if path]
        raise UnsupportedModelError(
            f"{type(model).__name__} has no module {shortened(repr(block), 80)} to be a block; "
            f"give modules of it, or their paths, such as {listed(paths)}"
        )
    return path


def unwrapped(model: Any) -> Any:
    """Return what is inside of DataParallel, torch.compile's wrapper and `HookedModel`."""
    while isinstance(model, nn.Module):
        model = bare(model)
        if not isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            break
        model = model.module
    return model


def _any_adapter(model: nn.Module) -> Adapter:
    """Return the adapter that knows the model, else one that measures any."""
    adapters = installed_adapters().values()
    knowing = [adapter for adapter in adapters if adapter.matches(model)]
    measuring = [
        adapter
        for adapter in adapters
        if type(adapter).attach_by_head is not Adapter.attach_by_head
    ]
    if not knowing and not measuring:
        raise UnsupportedModelError(_nobody_knows(model))
    # The head is verified on a probe, so that one that claims too much is found out there.
    return (knowing or measuring)[0]


def adapter_of(model: nn.Module) -> Adapter:
    """Return the one installed adapter that knows the bare `model`.

    Raises:
        UnsupportedModelError: if none knows it, or several do.
    """
    claims = {
        name: adapter for name, adapter in installed_adapters().items() if adapter.matches(model)
    }
    if len(claims) > 1:
        raise UnsupportedModelError(
            f"the adapters {sorted(claims)} all claim {type(model).__name__}; uninstall all but one"
        )
    if not claims:
        raise UnsupportedModelError(_nobody_knows(model))
    (adapter,) = claims.values()
    return adapter


def _nobody_knows(model: nn.Module) -> str:
    kind = type(model)
    missing = "".join(
        f"; '{name}' could not be loaded ({reason}), install its library"
        for name, reason in missing_adapters().items()
    )
    # In the order of definition the classifier mostly comes last.
    linear = [path for path, part in model.named_modules() if isinstance(part, nn.Linear) and path]
    head = (
        f"attach(model, head='{linear[-1]}') if it is the last of the model's linear layers "
        f"{linear[-3:]}"
        if linear
        else "attach(model, head=...)"
    )
    inside = _known_inside(model)
    if inside is not None:
        path, known = inside
        return (
            f"{kind.__qualname__} is of no known family, but has one inside: {known} at '{path}'. "
            f"Name the linear layer whose output the logits are: {head}, or "
            f"attach(model.get_submodule('{path}')) if that part is a whole classifier, with "
            "images as that part takes them"
        )
    return (
        f"no installed adapter knows {kind.__module__}.{kind.__qualname__}; installed: "
        f"{sorted(installed_adapters())}{missing}. Name the linear layer whose output the "
        f"logits are: {head}; or use a model of these families, or register an "
        f"adapter under the entry-point group '{ENTRY_POINT_GROUP}'"
    )


def _known_inside(model: nn.Module) -> tuple[str, str] | None:
    """Return path and class of the outermost module inside that an adapter knows."""
    adapters = list(installed_adapters().values())
    for path, module in model.named_modules():
        if path and any(adapter.matches(module) for adapter in adapters):
            return path, type(module).__name__
    return None


def _with_lens_if_installed(hooked: HookedModel) -> HookedModel:
    """Return a TransformerLens module where that library is there to be imported."""
    if find_spec("transformer_lens") is None:
        return hooked
    from salve_plugin.lens import with_lens

    return with_lens(hooked)
