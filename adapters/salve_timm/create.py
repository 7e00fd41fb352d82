"""timm models by name, their preprocessing, and what they say about themselves."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import timm
from torch import Tensor, nn

from salve_plugin.errors import ReadError, UnsupportedModelError
from salve_timm.checkpoint import fill, n_classes_in, part_of, read_state
from salve_timm.probe import pretrained_cfg

if TYPE_CHECKING:
    from PIL.Image import Image


def create_model(
    name: str, *, checkpoint: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """Build a timm model in eval mode.

    Args:
        name: timm's name, with or without a tag (`resnet18.a1_in1k`), or `hf-hub:owner/name`.
        checkpoint: path of a state dict, .safetensors or .pth, alone or in a checkpoint of timm,
            Lightning or another script, whose prefixes are taken off; without it timm's own
            pretrained weights are used, from the cache or downloaded. With it the model no longer
            says that its weights are timm's and under their license.
        num_classes: size of the classifier; by default that of the checkpoint, or timm's own.

    Raises:
        UnsupportedModelError: if timm has no such model (close matches are listed), has no
            weights for it, or cannot build it with these arguments.
        ReadError: if the checkpoint or the pretrained weights cannot be read.
        InputError: if the checkpoint does not fit the model, or holds no or several state dicts.
    """
    state = None if checkpoint is None else read_state(checkpoint)
    _check_name(name)
    model = _built(name, num_classes, pretrained=state is None)
    if state is not None and checkpoint is not None:
        own, rest = part_of(state, model.state_dict(), checkpoint)
        n_classes = n_classes_in(own, model)
        # Only the built model says which entry of the file is its classifier: where that has
        # another size, the model is built once more.
        if num_classes is None and n_classes not in (None, getattr(model, "num_classes", None)):
            model = _built(name, n_classes, pretrained=False)
        fill(model, own, rest, name, checkpoint)
        _forget_origin(model)
    return model.eval()


def _built(name: str, num_classes: int | None, *, pretrained: bool) -> nn.Module:
    extra: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **extra)
    except Exception as error:
        raise _creation_error(name, pretrained, error) from error
    return model


def transform_of(model: nn.Module) -> "Callable[[Image], Tensor]":
    """Return the evaluation transform of timm's data configuration for `model`."""
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call] # timm has no types
    transform: Callable[[Image], Tensor] = create_transform(**config, is_training=False)
    return transform


def imagenet_names(model: nn.Module) -> list[tuple[str, ...]] | None:
    """Return the names of each class, or None if the classifier is not one of ImageNet's.

    timm ships WordNet ids and descriptions of the subsets that its models were trained on.
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return [
        (info.index_to_label_name(index), info.index_to_description(index),
         info.index_to_description(index).split(",")[0])
        for index in range(int(getattr(model, "num_classes", 0)))
    ]  # fmt: skip


def normalization_of(model: nn.Module) -> dict[str, Sequence[float]]:
    """Return mean and standard deviation of the pixels by channel, where timm states them."""
    cfg = pretrained_cfg(model)
    return {name: cfg[name] for name in ("mean", "std") if cfg.get(name) is not None}


def describe(model: nn.Module) -> dict[str, object]:
    """Return architecture and origin of the weights as plain JSON values."""
    cfg = pretrained_cfg(model)
    return {
        "family": "timm",
        "architecture": cfg.get("architecture") or type(model).__name__,
        "num_classes": int(getattr(model, "num_classes", 0) or 0),
        "pretrained_tag": cfg.get("tag") or None,
        "hf_hub_id": cfg.get("hf_hub_id") or None,
        "license": cfg.get("license") or None,
    }


def _check_name(name: str) -> None:
    """Refuse a name that timm does not know; names with a scheme are left to timm."""
    base = name.split(".")[0]
    if ":" in name or timm.is_model(base):
        return
    close = get_close_matches(base, timm.list_models(), n=5, cutoff=0.5)
    hint = f"did you mean {close}?" if close else "timm.list_models() lists all names"
    raise UnsupportedModelError(f"timm {timm.__version__} has no model '{name}'; {hint}")


def _creation_error(name: str, pretrained: bool, error: Exception) -> Exception:
    """Return our error for timm's: unreachable weights, a missing tag, or wrong arguments."""
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) or "http" in type(error).__module__:
        return ReadError(
            f"the weights of '{name}' cannot be fetched ({cause}). Connect to the Hugging Face "
            "Hub or set HF_HUB_CACHE to a cache that holds them, or give a local state dict: "
            "checkpoint='weights.safetensors'"
        )
    if pretrained and isinstance(error, RuntimeError):
        return UnsupportedModelError(
            f"'{name}' cannot be built with pretrained weights ({cause}). Choose a tag that has "
            f"weights, {timm.list_pretrained(name.split('.')[0] + '.*')[:8]}, or give checkpoint="
        )
    return UnsupportedModelError(f"timm cannot build '{name}' ({cause})")


def _forget_origin(model: Any) -> None:
    """Take from timm's description what holds for its own weights only."""
    model.pretrained_cfg = {
        **pretrained_cfg(model), "tag": None, "hf_hub_id": None, "license": None,
    }  # fmt: skip
