"""What messages tell people to use exists, is public, and is spelled as they have to write it."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from public_names import COMMAND, DOTTED, OPTION, commands, exists, public

import salve_plugin
import salve_timm
from salve_plugin.adapter import ENTRY_POINT_GROUP

FOLDERS = [Path(str(module.__file__)).parent for module in (salve_plugin, salve_timm)]
FILES = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))

CALL = re.compile(r"(?<![\w.<`'])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\((?!s\))")
"""Something that a message tells people to call."""

OWNERS = {
    "acts": salve_plugin.Activations,
    "artifact": salve_plugin.EditArtifact,
    "bundle": salve_plugin.EditBundle,
    "dictionary": salve_plugin.Dictionary,
    "edit": salve_plugin.Edit,
    "hooked": salve_plugin.HookedModel,
}
"""What messages call a value of which class."""


def texts(*kinds: type[ast.AST]) -> Iterator[tuple[str, str]]:
    """Yield every text inside of nodes of these kinds, docstrings excepted, and where it is."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for outer in ast.walk(tree):
            if not isinstance(outer, kinds):
                continue
            for node in ast.walk(outer):
                if isinstance(node, ast.JoinedStr):
                    parts = [getattr(part, "value", "") for part in node.values]
                    text = "".join(part if isinstance(part, str) else "{}" for part in parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = "" if id(node) in docs else node.value
                else:
                    continue
                yield f"{path.parent.name}/{path.name}:{node.lineno}", text


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield every docstring, those of constants too, and where it is."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = node.value.value
                if isinstance(text, str):
                    yield f"{path.parent.name}/{path.name}:{node.lineno}", text


def callable_by_reader(name: str) -> bool:
    """Tell whether a reader of a message can call this."""
    first, *rest = name.removeprefix("salve.").removeprefix("salve_plugin.").split(".")
    if first in OWNERS:
        return bool(rest) and exists(OWNERS[first], rest)
    if first in ("timm", "torch"):
        return exists(import_module(first), rest)
    return public([first, *rest])


def test_texts_name_only_what_the_package_exports() -> None:
    wrong = {
        f"{place.split(':')[0]}: {match[0]}"
        for place, text in texts(ast.Module)
        for match in DOTTED.finditer(text)
        if match[0] != ENTRY_POINT_GROUP and not public(match[1].strip(".").split("."))
    }
    assert not wrong


def test_docstrings_name_only_what_exists() -> None:
    wrong = {
        f"{place}: {match[0]}"
        for place, text in docstrings()
        for match in DOTTED.finditer(text)
        if match[0] != ENTRY_POINT_GROUP
        and not exists(salve_plugin, match[1].strip(".").split("."))
    }
    assert not wrong


def test_errors_tell_people_to_call_only_what_they_can_import() -> None:
    calls = {(place, match[1]) for place, text in texts(ast.Raise) for match in CALL.finditer(text)}
    assert len(calls) > 10
    assert not {f"{place}: {name}()" for place, name in calls if not callable_by_reader(name)}


def test_texts_name_only_commands_and_options_of_the_command_line() -> None:
    known = commands()
    every = set[str]().union(*known.values()) | {"--help", "--version"}
    wrong = set()
    for place, text in [*texts(ast.Module), *docstrings()]:
        if place.startswith(("cli/", "share/")):
            wrong |= {f"{place}: {option}" for option in OPTION.findall(text)} - {
                f"{place}: {option}" for option in every
            }
        for name, arguments in COMMAND.findall(text):
            extra = set(OPTION.findall(arguments)) - known.get(name, set())
            wrong |= {f"{place}: salve {name} {sorted(extra)}"} if extra else set()
            wrong |= set() if name in known else {f"{place}: salve {name}"}
    assert not wrong


@pytest.mark.parametrize("name", ["salve.nothing", "forget", "artifact.nothing", "torch.nothing"])
def test_a_name_that_is_not_there_is_noticed(name: str) -> None:
    assert not callable_by_reader(name)
