"""Parameters of a model by path, each with every module that holds it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from salve_plugin.errors import BaseMismatchError, UnsupportedModelError


@dataclass(frozen=True)
class Slot:
    """A parameter with every module that holds it: tied weights are one.

    Attributes:
        path: the name that was asked for.
        parameter: the tensor itself.
        owners: every module that holds it, with its name there.
    """

    path: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]


def slots_of(model: nn.Module, paths: Iterable[str]) -> dict[str, Slot]:
    """Return the parameters of the bare model by path; several paths may lead to one parameter.

    Raises:
        BaseMismatchError: if there is no such layer.
        UnsupportedModelError: if one is no plain parameter.
    """
    parameters = {path: parameter_at(model, path) for path in paths}
    owners: dict[int, list[tuple[nn.Module, str]]] = {id(p): [] for p in parameters.values()}
    for module in modules_of(model):
        for name, parameter in module._parameters.items():
            if id(parameter) in owners:
                owners[id(parameter)].append((module, name))
    return {path: Slot(path, p, tuple(owners[id(p)])) for path, p in parameters.items()}


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module once, in the order of `model.modules()`, in a third of its time.

    That one puts together a name for each, and hands it up through all levels.
    """
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            waiting.extend(
                child for child in reversed(module._modules.values()) if child is not None
            )


def parameter_at(model: nn.Module, path: str) -> nn.Parameter:
    """Return the parameter of this path, which can be written.

    Raises:
        BaseMismatchError: if there is no such layer.
        UnsupportedModelError: if it is no plain parameter, or has no values.
    """
    owner, _, name = path.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        raise BaseMismatchError(
            f"{type(model).__name__} has no layer '{owner}', where this edit writes; apply it "
            "to the model it was made for (for a wrapped model: to the model inside)"
        ) from None
    parameter = module._parameters.get(name)
    if parameter is None:
        raise UnsupportedModelError(
            f"'{path}' is no plain parameter of {type(module).__name__} (quantized, pruned or "
            "parametrized?), so writing to it would not last; remove the parametrization first"
        )
    if parameter.is_meta:
        raise UnsupportedModelError(
            f"'{path}' is on the meta device, where weights have no values; load the model first"
        )
    if parameter.is_inference() and not torch.is_inference_mode_enabled():
        raise UnsupportedModelError(
            f"'{path}' was made in inference mode and cannot be written outside of it; load the "
            "model outside of torch.inference_mode(), or edit it within"
        )
    return parameter


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Return the module of this path.

    Raises:
        BaseMismatchError: if there is none any more.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BaseMismatchError(
            f"{type(model).__name__} has no layer '{path}' any more; attach the model again"
        ) from None
