"""The text of a bundle's card: what its manifest says, in words for people."""

from collections.abc import Mapping
from typing import Any

from salve_plugin.share.card_metadata import Config, front_matter
from salve_plugin.share.card_text import (
    amount,
    class_names,
    evaluation_table,
    operation,
    title,
    usage,
)
from salve_plugin.store.card import Card, plain, sections, table


def bundle_card(config: Config) -> Card:
    """Return the card of a bundle, a function of its manifest alone."""
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
    return Card(front_matter(config, title(config)), sections(parts))


def _members(config: Config) -> str:
    rows = [
        (
            f"[{name}]({name})",
            f"{operation(said['edit'])} at `{plain(said['edit']['site']['name'])}`",
            class_names(config, said["edit"]["rows"]),
            amount(said["edit"]),
            _measures(said["evaluation"]),
        )
        for name, said in sorted(config["members"].items())
    ]
    head = ("member", "what", "rows", "strength", "alone: before → after")
    return f"## Members\n\n{table(head, rows)}"


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
        (f"`{plain(path)}`", class_names(config, tensor["rows"]), *(
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
            class_names(config, each["rows"]),
            each["meeting"],
        )
        for each in said["overlaps"]
    ]
    columns = ("member", "member", "weight", "rows", "which means")
    return f"{text}These pairs change the same rows:\n\n{table(columns, pairs)}"


def _how_to_use(config: Config) -> str:
    # Any of them is an example; the first by name is the same in every card of the bundle.
    name = min(config["members"])
    return usage(
        'bundle = salve.EditBundle.from_pretrained("user/repo", revision="<commit>")\n'
        "bundle.apply_(model)     # all members or none; refuses any other base model\n"
        "bundle.revert_(model)    # bit for bit\n"
        f'bundle.members["{name}"].edit.apply_(model)    # one alone'
    )
