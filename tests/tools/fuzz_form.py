"""What is fuzzed: edits, bundles and dictionaries, and their documented identities.

The identities are computed with nothing but JSON, struct and SHA-256; only the tensors of a
dictionary in SAELens' layout are translated by the library.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from small_artifacts import CONFIG, SEAL, TENSORS, Files

from salve_plugin.discover.saelens_layout import OWN, reimported

CIRCUMSTANCES = ("digest", "files", "format_version", SEAL, "merged", "producer")
BUNDLE = "edit_bundle.json"
_OF_DICTIONARY = ("learner", "options", "site")


@dataclass(frozen=True)
class Form:
    """How the files of one kind of thing are laid out.

    Attributes:
        manifest: name of the sealed file.
        tensors: name of the tensor file; None without one.
        path: of the object that has digest, files and seal, inside the manifest.
        free: name of an object in there that may hold anything.
        telling: name of an object in there whose values are part of the identity.
        identity: computes the identity of what files hold.
    """

    manifest: str
    tensors: str | None
    path: tuple[str, ...]
    free: tuple[str, ...]
    telling: tuple[str, ...]
    identity: Callable[[Files], str]

    def own(self, config: object) -> dict[str, Any]:
        """Return the object that has digest, files and seal; a loose one if there is none."""
        return _inside(config, self.path)

    def note(self, config: dict[str, Any], value: object) -> None:
        """Change something that is part of the identity."""
        place = _inside(self.own(config), self.telling)
        place["module" if "module" in place else "note"] = value

    @property
    def opening(self) -> bytes:
        """How that object begins in the text."""
        return f'"{self.path[-1]}": {{'.encode() if self.path else b"{"


def _inside(value: object, path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def form_of(files: Files) -> Form:
    """Return the form of files that nobody has taken the manifest from."""
    return next(form for form in (BUNDLE_FORM, DICTIONARY, EDIT) if form.manifest in files)


def tensors_name(files: Files) -> str:
    """Return the name of the tensor file."""
    name = form_of(files).tensors
    assert name is not None
    return name


def member_names(files: Files) -> list[str]:
    """Return the names of a bundle's members by the subfolders that there are."""
    return sorted({name.partition("/")[0] for name in files if "/" in name})


def member_files(files: Files, name: str) -> Files:
    """Return the files of one member by their names in its subfolder."""
    start = f"{name}/"
    return {path.removeprefix(start): files[path] for path in files if path.startswith(start)}


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _canonical(value: object) -> bytes:
    return _CANONICAL.encode(value).encode()


def _block(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _identity_of_edit(files: Files) -> str:
    config = json.loads(files[CONFIG])
    fields = {name: value for name, value in config.items() if name not in CIRCUMSTANCES}
    state = hashlib.sha256(_block(_canonical(fields)))
    data = files[TENSORS]
    start = 8 + int.from_bytes(data[:8], "little")
    names = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "I64": "int64",
    }
    for name, entry in sorted(json.loads(data[8:start]).items()):
        if name != "__metadata__":
            dtype, (first, last) = names[entry["dtype"]], entry["data_offsets"]
            state.update(
                _block(_canonical({"name": name, "dtype": dtype, "shape": entry["shape"]}))
            )
            state.update(_block(data[start + first : start + last]))
    return state.hexdigest()


def _identity_of_bundle(files: Files) -> str:
    """Return the identity of a manifest that tells the members' identities truly."""
    config = json.loads(files[BUNDLE])
    fields = {name: value for name, value in config.items() if name not in CIRCUMSTANCES}
    for name, said in fields["members"].items():
        said["digest"] = _identity_of_edit(member_files(files, name))
    return hashlib.sha256(_block(_canonical(fields))).hexdigest()


def _identity_of_dictionary(files: Files) -> str:
    config = json.loads(files[DICTIONARY.manifest])
    own = DICTIONARY.own(config)
    tensors = safetensors.torch.load(files[str(DICTIONARY.tensors)])
    if config["architecture"] in OWN:
        tensors = dict(reimported(own["learner"], tensors))
    state = hashlib.sha256(_block(_canonical({name: own[name] for name in _OF_DICTIONARY})))
    for name, tensor in sorted(tensors.items()):
        dtype, shape = str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
        state.update(_block(_canonical({"name": name, "dtype": dtype, "shape": shape})))
        data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        state.update(_block(data))
    return state.hexdigest()


EDIT = Form(CONFIG, TENSORS, (), ("edit", "base", "description"), ("data",), _identity_of_edit)
BUNDLE_FORM = Form(BUNDLE, None, (), ("base", "description"), ("data",), _identity_of_bundle)
DICTIONARY = Form(
    "cfg.json",
    "sae_weights.safetensors",
    ("metadata", "salve_plugin"),
    ("meta",),
    ("site",),
    _identity_of_dictionary,
)
