"""Which names of the package, commands and options a text may tell people to use."""

import re
from importlib import import_module
from types import ModuleType
from typing import Any

import typer.main

import salve_plugin
from salve_plugin.cli.app import app

DOTTED = re.compile(r"(?<![\w./-])(?:salve|salve_plugin)((?:\.[A-Za-z_]\w*)+)")
"""A name of the package as it is written in text, without the package."""

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COMMAND = re.compile(r"`salve ([a-z-]+)([^`]*)`")
"""A command in backticks, and what follows it there."""


def exists(owner: object, names: list[str]) -> bool:
    """Tell whether the chain of attributes exists, fields of dataclasses included."""
    for name in names:
        fields = getattr(owner, "__annotations__", {})
        if not hasattr(owner, name) and name not in fields and isinstance(owner, ModuleType):
            try:
                import_module(f"{owner.__name__}.{name}")
            except ImportError:
                return False
        if not hasattr(owner, name):
            return name in fields and name == names[-1]
        owner = getattr(owner, name)
    return True


def public(names: list[str]) -> bool:
    """Tell whether the chain starts at a public name and exists."""
    return names[0] in salve_plugin.__all__ and exists(salve_plugin, names)


def commands() -> dict[str, set[str]]:
    """Return the options of every command."""
    group: Any = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        | {option for parameter in command.params for option in parameter.secondary_opts}
        for name, command in group.commands.items()
    }
