"""The metadata of a card as YAML: what people wrote stays in the words in which they wrote it."""

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

BOOL = "tag:yaml.org,2002:bool"


@cache
def _loader() -> Any:
    """Return a safe loader to which only true and false are truth values, as in YAML 1.2.

    To PyYAML `no` is one, too, and the language Norwegian, or a tag of that name, would be lost.
    """
    import yaml

    resolvers = {
        first: [(tag, form) for tag, form in pairs if tag != BOOL or first in "tTfF"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return type("_Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})


def parsed(block: str) -> dict[str, Any]:
    """Return what a block of YAML says; empty for an empty one.

    Raises:
        Exception: of one of YAML's many kinds, or since the block is no mapping.
    """
    import yaml

    loaded = yaml.load(block, _loader())  # a safe one
    return {} if loaded is None else {**loaded}


def rewritten(block: str, metadata: Mapping[str, Any], line_break: str) -> str:
    """Return a block that says something else; entries that stay are not written anew.

    Read and written again, a version `1.10` would be 1.1 and a time a number, and comments lost.

    Args:
        block: a readable one, its last line ended.
        metadata: what it is to say.
        line_break: between new lines.
    """
    kept = "".join(_pieces(block, metadata, line_break))
    try:
        # Entries of other layouts (in braces, with anchors) may not stand alone.
        said = parsed(kept)
        if said.keys() == metadata.keys() and _same(said, {name: metadata[name] for name in said}):
            return kept
    except Exception:  # as `parsed`
        pass
    return _dumped(metadata, line_break)


def _pieces(block: str, metadata: Mapping[str, Any], line_break: str) -> Iterator[str]:
    """Yield the entries as they stand where they still hold, else new ones."""
    import yaml

    there, node = parsed(block), yaml.compose(block, _loader())
    keys = [] if node is None else [key for key, _ in node.value]
    begins = [key.start_mark.index - key.start_mark.column for key in keys]
    starts = [*(_with_comments(block, begin) for begin in begins), len(block)]
    yield block[: starts[0]]
    written = set()
    for key, begin, (start, end) in zip(keys, begins, pairwise(starts), strict=True):
        name = key.value
        if name in metadata and _same(there.get(name), metadata[name]):
            yield block[start:end]
        elif name in metadata and name not in written:
            yield block[start:begin] + _dumped({name: metadata[name]}, line_break)
        written.add(name)
    added = {name: value for name, value in metadata.items() if name not in written}
    if added:
        yield _dumped(added, line_break)


def _with_comments(block: str, begin: int) -> int:
    """Return where the comments in front of an entry begin."""
    while begin:
        line = block.rfind("\n", 0, begin - 1) + 1
        if not block[line:begin].lstrip().startswith("#"):
            break
        begin = line
    return begin


def _same(one: Any, other: Any) -> bool:
    # As text, in which what is referred to stands once: compared as values, a few lines that refer
    # to each other could take for ever, or have no end.
    return _dumped({"": one}, "\n") == _dumped({"": other}, "\n")


def _dumped(metadata: Mapping[str, Any], line_break: str) -> str:
    import yaml

    text: str = yaml.dump(
        dict(metadata), sort_keys=False, allow_unicode=True, line_break=line_break
    )
    return text
