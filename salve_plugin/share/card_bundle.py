"""The text of a bundle's card: what its manifest says, in words for people."""

from collections.abc import Mapping
from typing import Any

from salve_plugin.share.card_metadata import Config, front_matter
from salve_plugin.share.card_text import amount, class_name, evaluation_table, operation, title
from salve_plugin.store.card import Card, plain, table


def bundle_card(config: Config) -> Card:
    """Return the card of a bundle, a function of its manifest alone."""
    return Card(front_matter(config, title(config)), _body(config))


def _body(config: Config) -> str:
    parts = [
        f"# {plain(title(config))}",
        "This folder holds permanent edits of the weights of a trained image classifier, made with "
        "[salve_plugin](https://pypi.org/project/salve-plugin/), and a record of what they make of "
        "it together. It does not hold the model. Each edit lies in a subfolder of its name and "
        "can be used alone.",
        _members(config),
        _composition(config),
        evaluation_table(config),
        _how_to_use(config),
        "## Integrity\n\n"
        f"Bundle `{config['digest']}` (SHA-256 over its members' digests and the composition). "
        "Every file except the cards is checked against `edit_bundle.json` and the members' "
        "`edit_config.json` before it is used.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _members(config: Config) -> str:
    rows = [
        (
            f"[{name}]({name})",
            f"{operation(said['edit'])} at `{plain(said['edit']['site']['name'])}`",
            _rows(config, said["edit"]["rows"]),
            amount(said["edit"]),
            _measures(said["evaluation"]),
        )
        for name, said in sorted(config["members"].items())
    ]
    head = ("member", "what", "rows", "strength", "alone: before → after")
    return f"## Members\n\n{table(head, rows)}"


def _rows(config: Config, rows: list[int] | None) -> str:
    return "all" if rows is None else ", ".join(class_name(config, row) for row in rows)


def _measures(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "not given"
    return "; ".join(
        f"{plain(name)} {before:.4g} → {evaluation['after'][name]:.4g}"
        for name, before in sorted(evaluation["before"].items())
    )


def _composition(config: Config) -> str:
    said = config["composition"]
    weights = [
        (f"`{plain(path)}`", _rows(config, tensor["rows"]), *(
            f"`{digest[:16]}…`" for digest in (tensor["before"]["sha256"], tensor["after"])
        ))
        for path, tensor in sorted(said["tensors"].items())
    ]  # fmt: skip
    head = ("weight", "rows", "SHA-256 before", "with all members")
    text = (
        "## Together\n\nOf the edits of one weight factors are multiplied and low-rank terms "
        f"added; their order has no meaning.\n\n{table(head, weights)}\n\n"
    )
    if not said["overlaps"]:
        return text + "No two members change the same rows of a weight."
    pairs = [
        (
            each["first"],
            each["second"],
            f"`{plain(each['tensor'])}`",
            _rows(config, each["rows"]),
            each["meeting"],
        )
        for each in said["overlaps"]
    ]
    columns = ("member", "member", "weight", "rows", "which means")
    return f"{text}These pairs change the same rows:\n\n{table(columns, pairs)}"


def _how_to_use(config: Config) -> str:
    name = min(config["members"])
    return (
        "## Apply and revert\n\n"
        "Put this repository's name in the place of `user/repo`, and of `<commit>` the commit that "
        "you have looked at: the same commit is the same bytes forever. A path of a local folder "
        "works instead of both.\n\n```python\n"
        "import salve_plugin as salve\n\n"
        'bundle = salve.EditBundle.from_pretrained("user/repo", revision="<commit>")\n'
        "bundle.apply_(model)     # all members or none; refuses any other base model\n"
        "bundle.revert_(model)    # bit for bit\n"
        f'bundle.members["{name}"].edit.apply_(model)    # one alone\n```'
    )
