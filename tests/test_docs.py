"""The pages and the README teach public names only, and all of them exist."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from public_names import COMMAND, DOTTED, OPTION, commands, exists, public

import salve_plugin
from salve_plugin.adapter import ENTRY_POINT_GROUP

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "adapters" / "README.md"]

MODULES = ("salve_plugin", "salve_plugin.errors", "salve_plugin.demo")
"""Modules that people may import from."""


def named(text: str) -> set[str]:
    """Return the names of the package in a text, imports excepted."""
    names = {match[1].strip(".") for match in DOTTED.finditer(text)}
    return names - {ENTRY_POINT_GROUP.partition(".")[2]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_the_package_exports(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if "from salve_plugin" not in line)
    internal = {name for name in named(text) if not public(name.split("."))}
    assert internal <= {"errors"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_imports_only_from_public_modules(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        for node in ast.parse(line.strip()).body if line.strip().startswith("from salve_") else ():
            assert isinstance(node, ast.ImportFrom)
            assert node.module in MODULES
            for alias in node.names:
                assert exists(import_module(node.module), [alias.name]), line


def test_the_reference_documents_every_public_name_once() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: salve_plugin\.([\w.]+)$", text, re.M)
    assert len(names) == len(set(names))
    aliases = {"GradFAM", "SalveError"}  # another name of LayerGradFam; among the errors
    assert {*names, *aliases} == {*salve_plugin.__all__, "errors"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_commands_and_options_of_the_command_line(page: Path) -> None:
    known = commands()
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```(?:console|bash|sh)\n(.*?)```", text, re.S))
    lines = [*COMMAND.findall(text), *re.findall(r"^salve ([a-z-]+)([^#\n]*)", shell, re.M)]
    for name, arguments in lines:
        assert name in known
        assert set(OPTION.findall(arguments)) <= known[name] | {"--help"}, name
