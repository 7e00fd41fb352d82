"""A learned dictionary: affine encoder, activation function, atoms of unit norm."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from salve_plugin.discover.learners import create
from salve_plugin.discover.learners.base import COMMON, Learner
from salve_plugin.errors import ArtifactError, InputError, WriteError
from salve_plugin.files import sha256_tensor, write_atomically
from salve_plugin.reference import Reference
from salve_plugin.site import Site

TENSORS_FILE = "dictionary.safetensors"
FIELDS_FILE = "dictionary.json"
FORMAT_VERSION = 1
NORM_TOLERANCE = 1e-4


class Dictionary(nn.Module):
    """Reads activations as codes and writes codes as activations.

    The code of a row x is z = σ(E x + b_e), its reconstruction x̂ = z V + b_d; the learner defines
    σ, and a few learners another encoder or decoder. It takes raw activations: the scale and the
    mean that training used are folded into the biases, so that the rows of V keep unit norm and
    z_l is the length of the contribution of atom l.

    Attributes:
        encoder_weight: E (n_latents, width).
        encoder_bias: b_e (n_latents,).
        atoms: V (n_latents, width), rows of unit norm.
        decoder_bias: b_d (width,).
        learner: name of the learner; it defines σ.
        options: the learner's hyper-parameters.
        tensors: all of the above by name, and what else the learner's code depends on.
        site: where in the model the activations are read.
        meta: how it was trained and how well it reconstructs; plain JSON values.
        origin: the place on the Hub that it was pulled from or pushed to; None if it was not.
    """

    origin: Reference | None = None

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        learner: Learner,
        site: Site,
        meta: Mapping[str, object] | None = None,
    ) -> None:
        """Build a frozen dictionary from its tensors, by name.

        Raises:
            InputError: if a tensor is missing, of the wrong shape or not finite, or an atom does
                not have unit norm.
        """
        super().__init__()
        names = sorted((*COMMON, *learner.extra))
        _check(tensors, names, site)
        with torch.inference_mode(False):  # else nothing could be differentiated through it
            for name in names:
                value = tensors[name].detach().clone()
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        self.encoder_weight: Tensor
        self.encoder_bias: Tensor
        self.atoms: Tensor
        self.decoder_bias: Tensor
        self._learner = learner
        self.site = site
        self.meta: Mapping[str, object] = dict(meta or {})
        self.eval()
        self._check_code()

    @property
    def learner(self) -> str:
        """Name of the learner."""
        return self._learner.name

    @property
    def options(self) -> dict[str, object]:
        """The learner's hyper-parameters, as plain JSON values."""
        options = asdict(self._learner)  # type: ignore[call-overload] # every learner is a dataclass
        return {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, sorted."""
        return dict(sorted(self.named_parameters()))

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.atoms.shape[0]

    @property
    def width(self) -> int:
        """Number of features D of the activations."""
        return self.atoms.shape[1]

    def extra_repr(self) -> str:
        """Say what kind of dictionary it is."""
        size = f"n_latents={self.n_latents}, width={self.width}"
        return f"{self.learner!r}, {size}, site={self.site.name!r}"

    def pre_activation(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows latents"]:
        """Return E x + b_e, or what the learner has in its place; differentiable.

        Raises:
            InputError: if the last axis of `x` is not `width` long.
        """
        return self._learner.pre_activation(self.tensors, self._rows(x))

    def encode(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows latents"]:
        """Return the code z of activations; differentiable.

        Raises:
            InputError: if the last axis of `x` is not `width` long.
        """
        return self._learner.encode(self.tensors, self._rows(x))

    def decode(self, z: Float[Tensor, "*rows latents"]) -> Float[Tensor, "*rows width"]:
        """Return the activations that codes stand for, z V + b_d as a rule; differentiable.

        Raises:
            InputError: if the last axis of `z` is not `n_latents` long.
        """
        if z.ndim == 0 or z.shape[-1] != self.n_latents:
            raise InputError(
                f"codes of shape {tuple(z.shape)} do not fit a dictionary of {self.n_latents} "
                "latents: they are on the last axis"
            )
        return self._learner.decode(self.tensors, z.to(self.atoms.dtype))

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Return the reconstruction of activations."""
        return self.decode(self.encode(x))

    def digest(self) -> str:
        """Return the SHA-256 of the dictionary's content: tensors, learner, options and site.

        It does not depend on `meta`, on the device, or on how a file lays the tensors out.
        """
        lines = [
            f"{name} {tensor.dtype} {tuple(tensor.shape)} {sha256_tensor(tensor)}"
            for name, tensor in self.tensors.items()
        ]
        fields = {"learner": self.learner, "options": self.options, "site": self.site.to_json()}
        lines.append(json.dumps(fields, sort_keys=True, allow_nan=False))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `dictionary.safetensors` and `dictionary.json` into `folder`.

        Raises:
            InputError: if `meta` holds something that JSON cannot.
            WriteError: if the disk is full or not writable.
        """
        folder = Path(folder)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        fields = {
            "format_version": FORMAT_VERSION,
            "learner": self.learner,
            "options": self.options,
            "site": self.site.to_json(),
            "meta": dict(self.meta),
            "sha256": self.digest(),
        }
        try:
            text = json.dumps(fields, sort_keys=True, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"meta must hold finite plain JSON values: {error}") from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"cannot make the folder {folder}: {error.strerror}") from error
        write_atomically(folder / TENSORS_FILE, save(tensors, metadata={"format": "pt"}))
        write_atomically(folder / FIELDS_FILE, text.encode() + b"\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Dictionary":
        """Read a saved dictionary and verify it against its digest.

        Raises:
            ArtifactError: if a file is missing, damaged, from a newer version, or not what was
                saved.
        """
        folder = Path(folder)
        fields = _read_fields(folder / FIELDS_FILE)
        try:
            tensors = load((folder / TENSORS_FILE).read_bytes())
            learner = create(fields["learner"], fields["options"])
            dictionary = cls(tensors, learner, Site.from_json(fields["site"]), fields["meta"])
            digest = dictionary.digest()
        except (OSError, SafetensorError, InputError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"cannot load the dictionary in {folder}: {error}") from error
        if digest != fields.get("sha256"):
            raise ArtifactError(
                f"the dictionary in {folder} was changed since it was saved: its digest is "
                f"{digest}, {FIELDS_FILE} says {fields.get('sha256')}; get an intact copy"
            )
        return dictionary

    def _rows(self, x: Tensor) -> Tensor:
        """Return activations in the dictionary's type, checked."""
        if x.ndim == 0 or x.shape[-1] != self.width:
            raise InputError(
                f"activations of shape {tuple(x.shape)} do not fit a dictionary of width "
                f"{self.width}: the last axis must hold the features of site '{self.site.name}'"
            )
        return x.to(self.encoder_weight.dtype)

    @torch.no_grad()
    def _check_code(self) -> None:
        """Raise InputError unless a row can be encoded and decoded with the tensors given."""
        row = self.atoms.new_zeros(1, self.width)
        try:
            code = self.encode(row)
            shapes = tuple(code.shape), tuple(self.decode(code).shape)
        except (RuntimeError, IndexError) as error:
            raise InputError(
                f"the tensors {sorted(self.tensors)} do not make a '{self.learner}' dictionary: "
                f"{error}"
            ) from error
        if shapes != ((1, self.n_latents), (1, self.width)):
            raise InputError(
                f"the tensors {sorted(self.tensors)} do not make a '{self.learner}' dictionary of "
                f"{self.n_latents} latents and width {self.width}: one row has a code of shape "
                f"{shapes[0]} and a reconstruction of shape {shapes[1]}"
            )


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version!r}; this version of salve_plugin reads "
            f"{FORMAT_VERSION}: update salve_plugin"
        )
    return fields  # type: ignore[no-any-return] # checked above


def _check(tensors: Mapping[str, Tensor], names: list[str], site: Site) -> None:
    """Raise InputError unless the tensors make a dictionary for the site."""
    if sorted(tensors) != names:
        raise InputError(f"this dictionary has tensors {names}, got {sorted(tensors)}")
    atoms = tensors["atoms"]
    if atoms.ndim != 2 or len(atoms) == 0 or atoms.shape[1] != site.width:
        raise InputError(
            f"atoms have shape {tuple(atoms.shape)}; expected (latents, {site.width}) for site "
            f"'{site.name}'"
        )
    latents, width = atoms.shape
    shapes = {
        "encoder_weight": (latents, width),
        "encoder_bias": (latents,),
        "decoder_bias": (width,),
        "atoms": (latents, width),
    }
    for name, tensor in tensors.items():
        shape = shapes.get(name, tuple(tensor.shape))  # the learner's own are tried out at the end
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise InputError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected floats of "
                f"shape {shape}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{name} holds NaN or infinite values")
    worst = (torch.linalg.vector_norm(atoms.double(), dim=1) - 1).abs()
    if worst.max() > NORM_TOLERANCE:
        latent = int(worst.argmax())
        raise InputError(
            f"atom {latent} has norm {float(atoms[latent].double().norm()):.6g}; atoms must have "
            "norm 1, else the strength of an edit has no unit"
        )
