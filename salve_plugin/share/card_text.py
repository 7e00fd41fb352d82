"""The model card's text: what an artifact's manifest says, in words for people."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from salve_plugin.control.edit import kind_of
from salve_plugin.share.card_assessment import assessment_section
from salve_plugin.share.card_metadata import Config, described_base, front_matter
from salve_plugin.share.pictures import picture_name
from salve_plugin.store.card import Card, plain, sections, table


def edit_card(config: Config) -> Card:
    """Return the card of an artifact, a function of its manifest alone."""
    # The same bytes for the same manifest: so it is told whether people have edited a card.
    parts = [
        f"# {plain(title(config))}",
        _what_changed(config),
        evaluation_table(config),
        assessment_section(config["assessment"]),
        _critical_strengths(config),
        _pictures(config),
        _how_to_load(config),
        _how_to_use(config),
        _integrity(config),
    ]
    return Card(front_matter(config, title(config)), sections(parts))


def title(config: Config) -> str:
    """Return what the edited model is called, in one line of plain text."""
    # In one line, whatever an adapter says: it becomes a heading.
    architecture = described_base(config).get("architecture") or "A model"
    return f"{' '.join(str(architecture).split())} with {_features(config)}"


def _features(config: Config) -> str:
    if "members" in config:
        return "one edit" if len(config["members"]) == 1 else f"{len(config['members'])} edits"
    edit = config["edit"]
    if edit["operator"]["form"] != "gate":
        # A map or an update need not be about a feature: a method may have written it.
        names = {"low_rank_map": "part of a site mapped", "low_rank_update": "one layer updated"}
        return str(names[edit["operator"]["form"]])
    verb = {"suppress": "suppressed", "enhance": "enhanced"}[edit["operator"]["mode"]]
    count = len(edit["provenance"]["latents"])
    return f"{'one feature' if count < 2 else f'{count} features'} {verb}"


def operation(edit: Config) -> str:
    """Return what an edit does to what, in a few words."""
    operator = edit["operator"]
    return kind_of(operator["form"], operator.get("mode"), edit["provenance"]["latents"])


def amount(edit: Config) -> str:
    """Return how much of it: the strength of a gate, the scale of a map."""
    operator = edit["operator"]
    value = operator.get("strength", operator.get("scale"))
    return "—" if value is None else f"{value:g}"


def _what_changed(config: Config) -> str:
    edit, site = config["edit"], config["edit"]["site"]
    learner = config["dictionary"]["learner"] if config["dictionary"] else None
    source = f" of a `{plain(learner)}` dictionary" if learner else ""
    # What a method wrote is no feature: the note names the method.
    subject = "Method" if edit["provenance"]["kind"] == "written" else "Feature"
    undo = ", and the means to undo it" if "pristine" in config["requires"] else ""
    return (
        "This folder holds a permanent edit of the weights of a trained image classifier, made "
        f"with [salve_plugin](https://pypi.org/project/salve-plugin/){undo}. {_model(config)}\n\n"
        f"- **{subject}:** {_feature(edit)}{source}, at `{plain(site['name'])}` ({site['width']} "
        "features).\n"
        f"- **Change:** {_change(edit)}\n"
        f"- **Rows:** {'' if edit['rows'] is None else 'only '}"
        f"{class_names(config, edit['rows'])}.\n"
        f"- **Exactness:** {_exactness(edit['exactness'])}\n"
        "- **At run time:** no hooks and no further parameters; the edited model is as fast as "
        "the original."
    )


def _feature(edit: Config) -> str:
    latents = edit["provenance"]["latents"]
    if not latents:
        return plain(edit["provenance"]["note"] or "a direction that was given")
    return f"latent{'s' * (len(latents) > 1)} {', '.join(map(str, latents))}"


def _change(edit: Config) -> str:
    operator = edit["operator"]
    layers = ", ".join(f"`{plain(path)}`" for path in sorted(edit["base"]["tensors"]))
    if operator["form"] == "low_rank_map":
        return (
            f"{layers} take over x′ = x + (λ−1) U(Vᵀx − c) at the site, with λ = "
            f"{operator['scale']:g} and U, V, c in `edit.safetensors`."
        )
    if operator["form"] == "low_rank_update":
        return f"{layers} become W + ABᵀ and b + d, with A, B, d in `edit.safetensors`."
    verb = {"suppress": "Weakened", "enhance": "Strengthened"}[operator["mode"]]
    sign = {"suppress": "−", "enhance": "+"}[operator["mode"]]
    # A direction that was given is one, too, and of no latent.
    one = len(edit["provenance"]["latents"]) < 2
    reach = "|c_j|" if one else "reach_j"
    direction = "direction c (unit norm)" if one else "directions (unit norm; reach_j is the root "
    direction += "" if one else "of the sum of their squared entries)"
    reads = edit["targets"][0]["role"] == "reader"
    parts = f"columns of {layers}" if reads else f"rows of {layers}"
    return (
        f"{verb} are the {parts} in proportion to the feature's {direction}: "
        f"{'column' if reads else 'row'} j is multiplied by max(0, 1 {sign} α·{reach}), with "
        f"α = {operator['strength']:g}."
    )


def _exactness(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "the site is read by the classifier, which is linear in it."
    return (
        f"the logits differ by {measured['difference']:.1g} of their spread from those with the "
        f"same change made by a hook, on {measured['images']} probe images in "
        f"{measured['dtype']}; the edit itself changes them by {measured['effect']:.2g}."
    )


def class_names(config: Config, rows: Sequence[int] | None) -> str:
    """Return the names of the classes that rows are of."""
    return "all" if rows is None else ", ".join(_class_name(config, row) for row in rows)


def _class_name(config: Config, index: int) -> str:
    """Return the name of a class with its row, or the row alone."""
    labels = config["labels"]
    named = labels is not None and 0 <= index < len(labels)
    return f"{plain(labels[index])} ({index})" if named else str(index)


def evaluation_table(config: Config) -> str:
    """Return the section with the measures before and after, empty without any."""
    evaluation = config["evaluation"]
    if evaluation is None:
        return ""
    rows = [
        (plain(name), f"{before:.4g}", f"{evaluation['after'][name]:.4g}")
        for name, before in sorted(evaluation["before"].items())
    ]
    data = "\n".join(
        f"- {plain(key)}: {plain(value)}" for key, value in sorted(config["data"].items())
    )
    measures = table(("measure", "before", "after"), rows)
    return f"## Evaluation\n\n{measures}" + (f"\n\nData:\n\n{data}" if data else "")


def _critical_strengths(config: Config) -> str:
    critical = config["alpha_crit"]
    if critical is None:
        return ""
    rows = [
        (
            _class_name(config, entry["label"]),
            str(entry["count"]),
            f"{entry['already']:.0%}",
            f"{entry['unreachable']:.0%}",
            # Three of the six that the manifest has: a table that people read.
            *(_strength(entry["quantiles"][level]) for level in ("0.1", "0.5", "0.95")),
        )
        for entry in critical["classes"]
    ]
    head = ("class", "images", "there already", "never", "10 %", "median", "95 %")
    what, symbol, _ = _strength_of(config["edit"]["operator"])
    return (
        f"## Critical strength\n\nThe smallest {what} {symbol} at which an image's logit "
        f"{_target(critical)}, computed exactly; ∞ where no {symbol} does.\n\n{table(head, rows)}"
    )


def _strength_of(operator: Config) -> tuple[str, str, float]:
    """Return what critical strengths are counted in, its symbol, and how much the edit has."""
    if operator["form"] == "gate":
        return "strength", "α", operator["strength"]
    # A map's scale is what remains, its strength what is taken away.
    return "amount", "1 − λ", 1 - operator["scale"]


def _strength(value: int | float | None) -> str:
    return "∞" if value is None else f"{value:.4g}"


def _target(critical: Mapping[str, Any]) -> str:
    whose = {"label": "", "predicted": " (of the class that the model predicts)"}
    goal = {
        "zero": "falls to zero",
        "fraction": f"falls to {critical['fraction']} of its value",
        "flip": "is overtaken by that of another class",
    }
    return goal[critical["target"]] + whose[critical["against"]]


def _pictures(config: Config) -> str:
    files = sorted(name for name in config["files"] if name.endswith(".png"))
    shown = []
    for file in files:
        caption = _caption(picture_name(file), config)
        shown.append(f"![{caption}]({file})\n\n*{caption}*")
    return "## Pictures\n\n" + "\n\n".join(shown) if shown else ""


def _caption(name: str, config: Config) -> str:
    """Return what is seen in a picture, for readers and as the text in its place."""
    latent = ", ".join(map(str, config["edit"]["provenance"]["latents"])) or "?"
    if name == "alpha-crit" and config["alpha_crit"] is not None:
        what, symbol, value = _strength_of(config["edit"]["operator"])
        line = f" The dashed line is this edit, {symbol} = {value:g}." if value > 0 else ""
        return (
            f"Share of each class's images whose logit {_target(config['alpha_crit'])}, by the "
            f"{what} {symbol}. At 0: without any edit. What is missing to 100 % at ∞: no {symbol} "
            f"does it.{line}"
        )
    if re.fullmatch(r"grad-fam(-[0-9]+)?", name):
        return (
            f"An image, and where in it latent {latent} comes from (Grad-FAM): yellow raises the "
            "latent, blue lowers it, grey does neither."
        )
    if name == "maximized":
        return (
            f"An image made to drive latent {latent} as far as it goes (activation maximization)."
        )
    # What else people have drawn is called as its file is.
    return " ".join(re.split("[_-]+", name)).strip()


def _model(config: Config) -> str:
    if config["merged"] is None:
        return "It does not hold the model."
    return "It also holds the whole edited model (`config.json`, `model.safetensors`)."


def _how_to_load(config: Config) -> str:
    if config["merged"] is None:
        return ""
    first = min(config["edit"]["base"]["tensors"].items())[1]
    # timm loads every model as float32, whatever its file holds.
    cast = "" if first["dtype"] == "float32" else f".to(torch.{first['dtype']})"
    return (
        "## Load the edited model\n\n"
        "timm loads it from the root of a repository:\n\n```python\n"
        f"import timm\n{'import torch' + chr(10) if cast else ''}\n"
        f'model = timm.create_model("hf-hub:user/repo", pretrained=True){cast}\n```\n\n'
        "`transformers.AutoModelForImageClassification` loads it, too. Neither compares what it "
        'loads with `edit_config.json`; `salve.EditArtifact.verify("user/repo")` does.'
    )


def _how_to_use(config: Config) -> str:
    revert = (
        "artifact.revert_(model)          # the original weights, bit for bit"
        if "pristine" in config["requires"]
        else "artifact.edit.revert_(model)     # in the process that applied it"
    )
    return usage(
        'artifact = salve.EditArtifact.from_pretrained("user/repo", revision="<commit>")\n'
        "artifact.edit.apply_(model)      # refuses any other base model\n"
        f"{revert}"
    )


def usage(code: str) -> str:
    """Return the section that tells how to use what the card is of."""
    return (
        "## Apply and revert\n\n"
        "Put this repository's name in the place of `user/repo`, and of `<commit>` the commit that "
        "you have looked at: the same commit is the same bytes forever. A path of a local folder "
        f"works instead of both.\n\n```python\nimport salve_plugin as salve\n\n{code}\n```"
    )


def _integrity(config: Config) -> str:
    return (
        "## Integrity\n\n"
        f"Artifact `{config['digest']}` (SHA-256 over the edit's tensors and description); that "
        'is what `salve.EditArtifact.verify("user/repo", revision="<commit>")` returns. Every '
        "file except this text is checked against `edit_config.json` before it is used."
    )
