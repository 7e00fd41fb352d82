"""What the command line itself refuses, in words or as JSON."""

from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from typer.core import TyperGroup

from salve_plugin.errors import InputError

# Commands see values alone, and a default looks like what was given. Not by the context that typer
# hands to commands: its class has no one public name over typer's versions.
_given: ContextVar[Mapping[str, str]] = ContextVar("given_options", default=MappingProxyType({}))


class Once(TyperGroup):
    """Commands whose options, unless they take several values, are given at most once.

    Of an option that is given twice, only the last would count without a word.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command as the base class does.

        Raises:
            UsageError: of the command line, if an option is given twice.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if command is None or ctx.resilient_parsing:
            return name, command, rest
        own: Any = command.context_class(command, info_name=name, parent=ctx)
        _, _, given = command.make_parser(own).parse_args(args=list(rest))
        _given.set({each.name: each.opts[0] for each in given})
        counts: Counter[Any] = Counter(given)
        for option, count in counts.items():
            single = option.param_type_name == "option" and not option.multiple
            if count > 1 and single and not option.is_flag:
                own.fail(
                    f"Option '{option.opts[0]}' is given {count} times and takes one value; "
                    "give it once, or repeat the command for each value."
                )
        return name, command, rest


def refuse_idle(reason: str, *options: str) -> None:
    """Refuse options that would be passed over without a word.

    Args:
        reason: why they take no effect here, and what to do.
        options: names of the command's parameters.

    Raises:
        InputError: naming the first that is given.
    """
    given = [option for name, option in _given.get().items() if name in options]
    if given:
        raise InputError(f"{given[0]} takes no effect here: {reason}")


def usage_message(error: Exception) -> str | None:
    """Return what is wrong with the command line in one line, None for any other error."""
    form = getattr(error, "format_message", None)  # the class has no public name in typer
    return None if form is None else " ".join(str(form()).split())
