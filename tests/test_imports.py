"""The package's modules import each other in one direction, lazy imports counted."""

import ast
from pathlib import Path

import salve_plugin

ROOT = Path(salve_plugin.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
LAYERS = ("store", "faces", "discover", "control", "validate", "share", "report")
"""Rooms, each of which imports only from those before it and from what lies beside them."""


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, for typing alone excepted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in MODULES else node.module for name in names}
    return found & set(MODULES)


IMPORTS = {name: imports_of(path) - {name, "salve_plugin"} for name, path in MODULES.items()}


def reached(start: str) -> set[str]:
    """Return what a module imports, and what that imports, and so on."""
    seen: set[str] = set()
    todo = list(IMPORTS[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += IMPORTS[name]
    return seen


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert len(MODULES) > 100
    assert not [name for name in MODULES if name in reached(name)]


def test_rooms_import_from_those_below_only() -> None:
    for at, layer in enumerate(LAYERS):
        above = tuple(f"salve_plugin.{name}." for name in (*LAYERS[at + 1 :], "cli", "demo"))
        inside = [name for name in MODULES if name.startswith(f"salve_plugin.{layer}.")]
        assert inside, layer
        for name in inside:
            assert not [other for other in IMPORTS[name] if other.startswith(above)], name
