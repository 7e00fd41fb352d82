"""Annotations are checked at run time, at little cost where they name no shapes.

`--jaxtyping-packages` decorates every function with `jaxtyping.jaxtyped`, which binds the arguments
of each call to the dimensions that the annotations name. Where they name none, beartype alone
checks as much: that binding was half of the time of some tests.
"""

from collections.abc import Callable
from functools import partial, wraps
from inspect import isclass, isfunction
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray, config

with_dimensions = jaxtyping.jaxtyped


def checked(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Decorate as `jaxtyping.jaxtyped` does."""
    if function is None:
        return partial(checked, typechecker=typechecker)
    if not isfunction(function) or not _is_plain(function):
        return with_dimensions(function, typechecker=typechecker)
    strict = beartype(function)

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return (function if config.jaxtyping_disable else strict)(*args, **kwargs)

    return called


def _is_plain(function: Callable[..., Any]) -> bool:
    """Whether the annotations are known by now, and none names a shape."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # a class that is still being made, or imported for types alone
        return False
    return not any(_names_shape(hint) for hint in hints.values())


def _names_shape(hint: Any) -> bool:
    if isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(_names_shape(part) for part in get_args(hint))


vars(jaxtyping)["jaxtyped"] = checked
