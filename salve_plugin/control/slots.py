"""Parameters of a model by path, each with every module that holds it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from salve_plugin.composed import is_composed
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


def slots_of(
    model: nn.Module, paths: Iterable[str], modules: Sequence[nn.Module] | None = None
) -> dict[str, Slot]:
    """Return the parameters of the bare model by path; several paths may lead to one parameter.

    Args:
        model: bare.
        paths: of the parameters.
        modules: `modules_of(model)`, if somebody has them.

    Raises:
        BaseMismatchError: if there is no such layer.
        UnsupportedModelError: if one is no plain parameter.
    """
    parameters = {path: parameter_at(model, path) for path in paths}
    owners: dict[int, list[tuple[nn.Module, str]]] = {id(p): [] for p in parameters.values()}
    for module in modules_of(model) if modules is None else modules:
        if own := module._parameters:  # most modules have none, and an empty loop costs more
            for name, parameter in own.items():
                if id(parameter) in owners:
                    owners[id(parameter)].append((module, name))
    return {path: Slot(path, p, tuple(owners[id(p)])) for path, p in parameters.items()}


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return every module once, in the order of `model.modules()`, in a third of its time.

    That one puts together a name for each, and hands it up through all levels. Going through the
    modules is most of what editing one row of a network costs beside comparing its weight.
    """
    modules: list[nn.Module] = []
    seen: set[nn.Module | None] = {None}  # a child that is registered as None is no module
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            assert module is not None
            modules.append(module)
            if children := module._modules:
                # Reversed onto the stack, so that they come off in their own order.
                waiting.extend(reversed(children.values()))
    return modules


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
            "to the model it was made for (of DataParallel and the like: to model.module)"
        ) from None
    # Not getattr, which for a parametrized or pruned weight returns a tensor that is computed anew
    # in every pass.
    parameter = module._parameters.get(name)
    if parameter is None:
        raise UnsupportedModelError(
            f"'{path}' is no plain parameter of {type(module).__name__} (quantized, pruned or "
            "parametrized?), so writing to it would not last; remove the parametrization first"
        )
    if is_composed(parameter):
        raise UnsupportedModelError(
            f"'{path}' is an instance of {type(parameter).__name__}: quantized, or spread over "
            "devices, it has no elements of its own that an edit could change and put back. Edit "
            "the model first and quantize a copy of it; forget_(copy) lets go of the edit there"
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
