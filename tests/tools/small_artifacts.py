"""Small artifacts, their files in memory, and the same files as an attacker would write them."""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.assessment.outcomes import (
    Budget,
    ClassOutcome,
    Control,
    Effect,
    Evidence,
    Ideal,
    ParameterBudget,
    Prediction,
)
from salve_plugin.control.base import Base, Fingerprint
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import Gate
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.targets import Target
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.errors import MissingFileError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.site import HEAD_INPUT, Site
from salve_plugin.store.digest import content_digest
from salve_plugin.store.files import FileReader
from salve_plugin.store.seal import identity_fields
from salve_plugin.store.stored import Stored

WEIGHT = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [-1, -2, -3, -4]])
CONFIG, TENSORS, CARD = "edit_config.json", "edit.safetensors", "README.md"
SEAL = "manifest_sha256"

Files = dict[str, bytes]
Change = Callable[[dict[str, Any], dict[str, Tensor]], None]
"""Changes a manifest and the tensors in place."""


def grey_png() -> bytes:
    """Return a picture of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\x00\x80")
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def small_edit() -> Edit:
    """Return an edit of rows 1 and 2 of a 3x4 head."""
    return Edit(
        site=Site(HEAD_INPUT, "fc", "in", "pooled", 4, readers=("fc",)),
        operator=Gate(torch.tensor([[0.6, 0.0, -0.8, 0.0]]), 1.5),
        targets=(Target("fc.weight", None, "reader", "linear"),),
        rows=(1, 2),
        base=Base({"architecture": "Tiny"}, {"fc.weight": Fingerprint.of(WEIGHT)}),
        provenance=Provenance("latents", (5,), "ab" * 32),
    )


def altered(edit: Edit, **changes: Any) -> Edit:
    """Return a gate of one latent with another strength, mode, direction, latent or dictionary."""
    gate: dict[str, Any] = {}
    gate |= {name: changes.pop(name) for name in ("strength", "mode") if name in changes}
    if "direction" in changes:
        gate["directions"] = changes.pop("direction")[None]
    source = edit.provenance
    if "latent" in changes:
        source = replace(source, latents=(changes.pop("latent"),))
    if "dictionary_digest" in changes:
        source = replace(source, dictionary=changes.pop("dictionary_digest"))
    return replace(edit, operator=replace(edit.gate, **gate), provenance=source, **changes)


def with_edit(artifact: EditArtifact, edit: Edit) -> EditArtifact:
    """Return the artifact as if it had been made for another edit, with all its evidence."""
    critical, assessment = artifact.alpha_crit, artifact.assessment
    if critical is not None:
        critical = replace(critical, family=edit.family)
    if assessment is not None:
        assessment = replace(assessment, edit=edit.digest)
    return replace(artifact, edit=edit, alpha_crit=critical, assessment=assessment)


def small_crit() -> AlphaCrit:
    """Return those of four images: one root, one without, one there already, one more root."""
    values = torch.tensor([1.25, torch.inf, 0.0, 2.5], dtype=torch.float64)
    return AlphaCrit(
        values=values,
        linear=torch.tensor([1.25, 9.0, 0.0, 2.0], dtype=torch.float64),
        labels=torch.tensor([1, 1, 2, 2]),
        predicted=torch.tensor([1, 1, 0, 2]),
        target="zero",
        fraction=0.5,
        against="label",
        family=small_edit().family,
    )


def small_assessment() -> Assessment:
    """Return that of the edit on four images, two of which are of class 1, the target."""
    ideal = Ideal(kl_others=0.25, kl_target=0.5, others_agree=1.0, runner_up=0.5)
    effect = Effect(
        accuracy=0.0, concept=None, ideal=ideal, kl_others=0.125, others=-0.5, target=0.0,
        worst=-0.5, worst_label=2,
    )  # fmt: skip
    masked = replace(effect, accuracy=0.5, others=0.0, worst=0.0)
    target = ClassOutcome(
        accuracy=(1.0, 0.0), bias_change=0.0, count=2, destination=2, destination_share=1.0,
        label=1, name="ü|x", probability=(0.75, 0.125), spread=(2.0, 0.5), weights_changed=2,
        weights_zeroed=1,
    )  # fmt: skip
    other = replace(target, accuracy=(0.5, 0.0), label=2, name="<b>", destination=None)
    return Assessment(
        accuracy=0.75,
        budget=Budget(16, (ParameterBudget(4, 4.5, "fc.weight", 1, 0.25),)),
        classes=(target, replace(other, destination_share=0.0)),
        concept=None,
        controls=(Control(masked, "mask", None), Control(effect, "zero row", 12.5)),
        edit=small_edit().digest,
        effect=effect,
        evidence=Evidence(
            "salve evaluate ARTIFACT --data FOLDER", "cd" * 32, "ef" * 32, "01" * 32, None, 0
        ),
        images=4,
        predictions=(Prediction(0.5, 0.25, small_edit().latents, 0.75, -1.5),),
        reach="head",
        target=1,
        target_before=1.0,
    )


def small_artifact() -> EditArtifact:
    """Return an artifact of three kilobytes with every optional part but the dictionary."""
    return EditArtifact(
        small_edit(),
        alpha_crit=small_crit(),
        pristine={"fc.weight": WEIGHT[1:]},
        assessment=small_assessment(),
        evaluation={"before": {"accuracy of ü|x": 0.75}, "after": {"accuracy of ü|x": 0.25}},
        pictures={"heat_map": grey_png()},
        labels=("a", "ü|x", "<b>"),
        data={"name": "four images", "count": 4, "split": None},
    )


def small_bundle() -> EditBundle:
    """Return three edits of one 3x4 head; two and two of them overlap."""
    edit, whole = small_edit(), torch.tensor([0.0, 1.0, 0.0, 0.0])
    enhanced = altered(edit, mode="enhance", rows=None, direction=whole, latent=1, strength=0.5)
    return EditBundle.of(
        small_model(),
        {
            "rows": replace(small_artifact(), alpha_crit=None),
            "all": EditArtifact(enhanced, pristine={"fc.weight": WEIGHT}),
            "first": EditArtifact(replace(edit, rows=(0,)), pristine={"fc.weight": WEIGHT[:1]}),
        },
        evaluation={"before": {"accuracy": 0.75}, "after": {"accuracy": 0.125}},
        data={"name": "four images"},
    )


def random_dictionary(hooked: salve.HookedModel, latents: int = 16) -> Dictionary:
    """Return a dictionary of random atoms for a model's head."""
    site = hooked.site("unembed.hook_in")
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(latents, site.width, generator=generator)
    atoms = nn.functional.normalize(atoms, dim=1)
    tensors = {
        "atoms": atoms,
        "encoder_weight": atoms.clone(),
        "encoder_bias": torch.zeros(latents),
        "decoder_bias": torch.zeros(site.width),
    }
    return Dictionary(tensors, create("l1", {}), site, {"seed": 0})


def small_dictionary_artifact(learner: str) -> EditArtifact:
    """Return an artifact that embeds a dictionary of four atoms."""
    options = {"l1": {}, "topk": {"k": 2}, "mp": {"k": 2}}[learner]
    tensors = {
        "atoms": torch.eye(4),
        "encoder_weight": torch.eye(4),
        "encoder_bias": torch.zeros(4),
        "decoder_bias": torch.zeros(4),
    }
    edit = small_edit()
    dictionary = Dictionary(tensors, create(learner, options), edit.site, {"seed": 0, "note": "x"})
    edit = altered(edit, direction=torch.eye(4)[2], latent=2, dictionary_digest=dictionary.digest)
    return EditArtifact(edit, dictionary=dictionary, embed_dictionary=True)


def small_model() -> nn.Module:
    """Return the model that `small_edit` was made for."""
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(4, 3))
    with torch.no_grad():
        model.get_parameter("fc.weight").copy_(WEIGHT)
    return model


def state_bytes(model: nn.Module) -> Files:
    """Return every tensor of a model as bytes."""
    return {
        name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


def contents(folder: Path) -> Files:
    """Return the bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def tree(folder: Path) -> Files:
    """Return the bytes of every file in a folder and its subfolders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def covered(folder: Path) -> Files:
    """Return the files of an artifact that are under its seal: all but the card."""
    files = contents(folder)
    del files[CARD]
    return files


def reader_of(files: Mapping[str, bytes]) -> Callable[[str, int], bytes]:
    """Return a reader of files that lie in memory."""
    return lambda name, _: files[name]


Thing = TypeVar("Thing", bound=Stored)


def read_as(kind: type[Thing], read: FileReader) -> Thing:
    """Read a thing of some kind, everything checked."""
    return kind.built(kind.opened(read), None)


def describe_as(kind: type[Stored], read: FileReader) -> dict[str, Any]:
    """Return what a thing of some kind says about itself."""
    return kind.described(kind.opened(read), read)


def in_memory(files: Mapping[str, bytes]) -> str:
    """Verify an artifact that lies in memory; return its digest."""
    return read_as(EditArtifact, reader_of(files)).digest


def identity(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the identity of a manifest and its tensors."""
    return content_digest(identity_fields(config), tensors)


def bundle_in_memory(files: Mapping[str, bytes]) -> str:
    """Verify a bundle that lies in memory; return its digest."""

    def read(name: str, limit: int) -> bytes:
        if name not in files:
            raise MissingFileError(f"cannot read {name}")
        return reader_of(files)(name, limit)

    return read_as(EditBundle, read).digest


def flipped(data: bytes, bit: int) -> bytes:
    """Return the bytes with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def reseal(config: dict[str, Any]) -> bytes:
    """Return the bytes of a manifest whose seal is right, whatever else is wrong with it."""
    return EditArtifact.format.written(config)


def forged(files: Files, change: Change) -> Files:
    """Return the artifact's files, changed, with every digest right, as an attacker would."""
    config = json.loads(files[CONFIG])
    tensors = safetensors.torch.load(files[TENSORS])
    change(config, tensors)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    config["files"][TENSORS] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    config["digest"] = identity(config, tensors)
    return {**files, TENSORS: data, CONFIG: reseal(config)}
