"""Which module's input or output is meant, in any of the ways to say it, and if it fits."""

from typing import Any

from torch import nn

from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import listed
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Side, Site
from salve_plugin.taps import SIDE_NAMES
from salve_plugin.validate.latents import Encodes
from salve_plugin.validate.layout import Tokens, tokens_of

ModuleSide = tuple[nn.Module, Side]
"""A module's first input or its (first) output."""

ActivationLike = Site | ModuleSide | nn.Module
"""A site of the model, a place in it, or a module, which stands for its output."""

NamedActivation = ActivationLike | str | tuple[str, Side]
"""The same, or a site's name or a module's path for it."""


def unnamed(activation: NamedActivation, forward_func: Any, argument: str) -> ActivationLike:
    """Return what a name stands for: a site of an attached model, or a module of any model.

    Raises:
        InputError: if the model has no site or module of that name, or is no model.
    """
    given: Any = activation  # as_module_side checks what is no name
    pair = isinstance(given, tuple) and len(given) == 2
    name = given[0] if pair else given
    if not isinstance(name, str):
        return given  # type: ignore[no-any-return]
    model = unwrapped(forward_func)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{argument} {name!r} is a name, but forward_func is a {type(model).__name__}; pass "
            f"the model itself as forward_func, or {argument}=(module, 'out')"
        )
    sites = model.sites if isinstance(model, HookedModel) else {}
    if not pair and name in sites:
        return sites[name]
    modules = dict((model.model if isinstance(model, HookedModel) else model).named_modules())
    if name not in modules:
        raise InputError(
            f"{argument} {name!r} is no module of {type(model).__name__}, such as "
            f"{listed(list(modules)[1:])}, nor one of its sites {listed(sites)}"
        )
    return (modules[name], given[1]) if pair else modules[name]


def as_module_side(activation: ActivationLike, forward_func: Any, argument: str) -> ModuleSide:
    """Return the module and side that are meant.

    Args:
        activation: a site's path is looked up in the model that `forward_func` is or wraps.
        forward_func: the model, attached, in DataParallel or bare; or any function.
        argument: what `activation` is called, for a message.

    Raises:
        InputError: if it is none of the three, or a site of no such model.
    """
    if isinstance(activation, nn.Module):
        return activation, "out"
    if isinstance(activation, Site):
        return _module_of_site(activation, forward_func, argument), activation.side
    if (
        isinstance(activation, tuple)
        and len(activation) == 2
        and isinstance(activation[0], nn.Module)
        and activation[1] in ("in", "out")
    ):
        return activation
    raise InputError(
        f"{argument} {activation!r} must be one module, or a module and 'in' or 'out', a "
        "salve.Site, or the name of a module or site; loop over several"
    )


def _module_of_site(site: Site, forward_func: Any, argument: str) -> nn.Module:
    # Sites name modules of the bare model; DataParallel and HookedModel put a prefix before them.
    model = unwrapped(forward_func)
    if isinstance(model, HookedModel):
        model = model.model
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{argument} is site '{site.name}', which names its module by the path "
            f"'{site.module}', but forward_func is a {type(model).__name__}; pass the model itself "
            f"as forward_func, or {argument}=(module, {site.side!r})"
        )
    try:
        return model.get_submodule(site.module)
    except AttributeError:
        raise InputError(
            f"{type(model).__name__} has no module '{site.module}', where {argument} "
            f"'{site.name}' is; pass a site of this model"
        ) from None


def unwrapped(forward_func: Any) -> Any:
    """Return what is inside of DataParallel, whose names have a prefix."""
    if isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return forward_func.module
    return forward_func


def trained_at(dictionary: Encodes) -> Site | None:
    """Return the site that a dictionary was trained at, if it says so."""
    site = getattr(dictionary, "site", None)
    return site if isinstance(site, Site) else None


def readable(site: Site, dictionary: Encodes) -> Site:
    """Return the site if the dictionary can read it.

    Raises:
        InputError: if its width is another, or its layout than where the dictionary was trained.
    """
    trained_site, width = trained_at(dictionary), getattr(dictionary, "width", site.width)
    # Never broadcast: a dictionary of width 1 would "read" any site.
    if width != site.width:
        raise InputError(
            f"the dictionary reads {width} features, but site '{site.name}' of this model has "
            f"{site.width}; attach the model that it was trained on"
        )
    if (
        trained_site is not None
        and trained_site.name == site.name
        and trained_site.layout != site.layout
    ):
        raise InputError(
            f"the dictionary was trained at '{site.name}' in layout '{trained_site.layout}', but "
            f"the site of that name here has layout '{site.layout}'; attach the model that it was "
            "trained on"
        )
    return site


def layer_tokens(layer: ActivationLike, tokens: Tokens) -> Tokens:
    """Return the layer's layout; a site knows its own.

    Raises:
        InputError: if `tokens` says another.
        AttributionError: if the site has no positions.
    """
    if not isinstance(layer, Site):
        return tokens
    known = tokens_of(layer)
    # None is the default as well as a layout, so that it cannot contradict.
    if tokens not in (None, known):
        raise InputError(
            f"tokens={tokens!r}, but layer is site '{layer.name}', whose layout is {known!r}; "
            "leave tokens out"
        )
    return known


def side_name(module_side: ModuleSide) -> str:
    """Return `input` or `output`, for a message."""
    return SIDE_NAMES[module_side[1]]
