"""`salve apply`, `revert` and `inspect`: of an edit or a bundle of edits."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from salve_plugin.cli.assessments import show_assessment, show_predictions
from salve_plugin.cli.origins import noted_study
from salve_plugin.cli.output import say, show_json, show_table
from salve_plugin.cli.overwriting import check_file, check_outside
from salve_plugin.cli.shared import find
from salve_plugin.cli.studies import left_out_of, model_spec
from salve_plugin.cli.study import OpenModel
from salve_plugin.control.assessment.assess import assess
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import evaluate
from salve_plugin.control.matching import BaseMatch, match_all
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.digest import sha256_file
from salve_plugin.store.files import write_atomically
from salve_plugin.store.source import Where


def apply(
    source: str,
    where: Where,
    out: Path,
    model: str | None,
    checkpoint: Path | None,
    num_classes: int | None,
    data: Path | None,
    *,
    skip_unreadable: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Apply the edit, or all edits of the bundle, to the base; write the edited state dict.

    Raises:
        InputError: if `out` has another suffix than .safetensors, or the base is not named.
        SalveError: if anything cannot be read, applied or written; nothing is written then.
    """
    check_outside(out, [] if data is None else [data])
    kind, shared = edits_at(source, where)
    _check_out(out)
    opened = base_of(source, shared, model, checkpoint, num_classes)
    network = opened.hooked.model
    loader = None
    left_out: list[str] = []
    if data is not None:
        left_out = left_out_of(data, skip_unreadable, as_json=as_json)
        images = opened.images(data, labels=labels_of(shared), left_out=left_out)
        loader = images.batches(64)
        # What lies at --out is compared before anything is measured, which may take hours.
        shared.apply_(network) if isinstance(shared, EditBundle) else shared.edit.apply_(network)
        _encoded(network, out, force=force)
        shared.revert_(network)
    assessment = before = after = None
    if loader is not None and isinstance(shared, EditArtifact):
        # Of the artifact's own target: what is applied is what was made for it.
        target = None if shared.assessment is None else shared.assessment.target
        assessment = assess(opened.hooked, shared.edit, loader, target=target)
        before, after = assessment.accuracy, assessment.effect.accuracy
    elif loader is not None:
        before = evaluate(network, loader).overall
    (shared if isinstance(shared, EditBundle) else shared.edit).apply_(network)
    if loader is not None and assessment is None:
        after = evaluate(network, loader).overall
    _save(network, out, force=force)
    result: dict[str, object] = {
        "kind": kind,
        "artifact": shared.digest,
        "weights": str(out),
        "weights_sha256": sha256_file(out),
        "edited": _weights(shared),
    }
    match = match_all(network, _edits(shared))
    if loader is not None:
        result |= {"accuracy_before": before, "accuracy_after": after}
        result |= {"left_out": left_out} if as_json or left_out else {}
    if assessment is not None and as_json:
        result |= {"assessment": assessment.to_json(), "verdict": assessment.verdict}
    elif assessment is not None:
        show_assessment(assessment, f"edit of {source} on {data}", labels_of(shared))
    _show(result, match, "applied", as_json=as_json)


def revert(
    source: str,
    where: Where,
    out: Path,
    model: str | None,
    checkpoint: Path,
    num_classes: int | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Undo the edit, or all edits of the bundle, in a state dict; write the restored one.

    Raises:
        SalveError: as `apply`, and if the state dict does not hold what the edit made.
    """
    kind, shared = edits_at(source, where)
    _check_out(out)
    opened = base_of(source, shared, model, checkpoint, num_classes)
    shared.revert_(opened.hooked.model)
    _save(opened.hooked.model, out, force=force)
    result: dict[str, object] = {
        "kind": kind,
        "artifact": shared.digest,
        "weights": str(out),
        "weights_sha256": sha256_file(out),
        "restored": _weights(shared),
    }
    match = match_all(opened.hooked.model, _edits(shared))
    _show(result, match, "reverted", as_json=as_json)


def inspect(source: str, where: Where, *, as_json: bool) -> None:
    """Verify what lies at a place and show its summary.

    Raises:
        SalveError: as `find`.
    """
    item = find(source, **where)
    if as_json:
        show_json({"kind": item.kind, **item.description})
        return
    rows = [(key, value) for key, value in _flat(item.description) if value not in (None, {}, [])]
    show_table(f"{item.kind} {source}", ("field", "value"), rows)
    if isinstance(item.shared, EditArtifact) and item.shared.assessment is not None:
        show_predictions(item.shared.assessment)
    say("Verified: every byte is as it was written.")


def edits_at(source: str, where: Where) -> tuple[str, EditArtifact | EditBundle]:
    """Return what lies at a place and its kind, an edit or a bundle of edits.

    Raises:
        InputError: if a dictionary lies there.
        SalveError: as `find`.
    """
    item = find(source, **where)
    if isinstance(item.shared, Dictionary):
        raise InputError(
            f"{source} holds a dictionary, which edits nothing by itself; give an edit that was "
            "made with it, or a bundle of edits"
        )
    return item.kind, item.shared


def _edits(shared: EditArtifact | EditBundle) -> tuple[Edit, ...]:
    return shared.edits if isinstance(shared, EditBundle) else (shared.edit,)


def _weights(shared: EditArtifact | EditBundle) -> list[str]:
    """Return the names of the weights that are edited."""
    return sorted({name for edit in _edits(shared) for name in edit.base.tensors})


def labels_of(shared: EditArtifact | EditBundle) -> Sequence[str] | None:
    """Return the names that an artifact, or the first of a bundle, has for the model's classes."""
    artifacts = shared.members.values() if isinstance(shared, EditBundle) else (shared,)
    return next((each.labels for each in artifacts if each.labels is not None), None)


def base_of(
    source: str | Path,
    shared: EditArtifact | EditBundle,
    model: str | None,
    checkpoint: Path | None,
    num_classes: int | None,
) -> OpenModel:
    """Open the model named on the command line, or else the artifact's own base.

    Weights that were a file's are taken from the study that the artifact was made from, where that
    is noted; what is built is compared with the base before anything is done with it.

    Raises:
        InputError: if the artifact does not name its base, or not by a plain name, or the base's
            weights are a file's and it is not known which.
        SalveError: if the model cannot be built or attached.
    """
    description = _edits(shared)[0].base.description  # those of a bundle have one base
    if model is None:
        architecture, tag = description.get("architecture"), description.get("pretrained_tag")
        if not isinstance(architecture, str):
            raise InputError("the artifact does not name its base model; give --model")
        # A scheme, such as "hf-hub:", would fetch and open whatever the artifact's author chose.
        for name in (architecture, tag):
            if isinstance(name, str) and not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                raise InputError(
                    f"the artifact names its base model {name[:100]!r}, which is not the plain "
                    "name of an architecture; if you trust it, give it with --model"
                )
        if checkpoint is None:
            checkpoint = _noted_checkpoint(source, shared, description)
        # The tag names weights, which are the checkpoint's where there is one.
        model = (
            f"{architecture}.{tag}" if isinstance(tag, str) and checkpoint is None else architecture
        )
        # The base may have a classifier of another size than its family's.
        recorded = description.get("num_classes")
        if num_classes is None and isinstance(recorded, int):
            num_classes = recorded
    return model_spec(model, checkpoint, num_classes).open()


def _noted_checkpoint(
    source: str | Path, shared: EditArtifact | EditBundle, description: Mapping[str, object]
) -> Path | None:
    study = noted_study(source, shared.digest)
    if study is not None and study.spec.checkpoint is not None:
        return Path(study.spec.checkpoint)
    if study is None and not (description.get("pretrained_tag") or description.get("hf_hub_id")):
        raise InputError(
            "the weights of the artifact's base are a file's, and it is not known here which; "
            "give it with --checkpoint (or --model, if a library has them by a name)"
        )
    return None


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must end in .safetensors")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")


def _save(model: nn.Module, out: Path, *, force: bool) -> None:
    write_atomically(out, _encoded(model, out, force=force))


def _encoded(model: nn.Module, out: Path, *, force: bool) -> bytes:
    """Return the file that is to be at `out`, unless another one is there."""
    from safetensors.torch import save

    # safetensors holds no strides, which a channels_last model has.
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    # In memory before it is written, to be compared with what lies there; the same is written
    # again.
    data: bytes = save(state, metadata={"format": "pt"})
    check_file(out, data, force=force)
    return data


def _show(result: dict[str, object], match: BaseMatch, title: str, *, as_json: bool) -> None:
    if as_json:
        show_json({**result, **match.to_json()})
        return
    show_table(title, ("what", "value"), list(result.items()))
    say(f"Compared: {match}.")


def _flat(value: object, prefix: str = "") -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [
            pair
            for key, child in value.items()
            for pair in _flat(child, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)]
