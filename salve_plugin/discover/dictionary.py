"""A learned dictionary: affine encoder, activation function, atoms of unit norm."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salve_plugin.discover.learners.base import COMMON, Learner
from salve_plugin.discover.unit_atoms import check_tensors
from salve_plugin.errors import InputError
from salve_plugin.files import sha256_tensor
from salve_plugin.reference import Reference
from salve_plugin.site import Site

if TYPE_CHECKING:
    from salve_plugin.share.hub.push import Pushed
    from salve_plugin.share.sources import Where


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
    """

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
        check_tensors(tensors, names, site)
        with torch.inference_mode(False):  # else nothing could be differentiated through it
            for name in names:
                value = tensors[name].detach()
                value = torch.where(value == 0, 0.0, value)  # no -0: equal values, equal digests
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        self.encoder_weight: Tensor
        self.encoder_bias: Tensor
        self.atoms: Tensor
        self.decoder_bias: Tensor
        self._learner = learner
        self.site = site
        self.meta: Mapping[str, object] = dict(meta or {})
        self._origin: tuple[Reference, str] | None = None
        self.eval()
        self._check_code()

    @property
    def learner(self) -> str:
        """Name of the learner."""
        return self._learner.name

    @property
    def options(self) -> dict[str, object]:
        """The learner's hyper-parameters, as plain JSON values."""
        options = asdict(self._learner)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, sorted."""
        return dict(sorted(self.named_parameters()))

    @property
    def origin(self) -> Reference | None:
        """The place on the Hub that it was pulled from or pushed to.

        None if it was not, or its tensors were changed since (by `half()`, say).
        """
        if self._origin is None or self._origin[1] != self.digest():
            return None
        return self._origin[0]

    @origin.setter
    def origin(self, reference: Reference | None) -> None:
        self._origin = None if reference is None else (reference, self.digest())

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

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the dictionary into a folder; the network is never used.

        The files are those of SAELens, `cfg.json` and `sae_weights.safetensors`, which SAELens
        reads where it has an architecture that codes as the dictionary does, and `README.md`, the
        card. The same dictionary gives the same bytes. Over an older dictionary it is all or
        nothing; of an existing `README.md` people's text stays.

        Returns:
            The folder.

        Raises:
            InputError: if `meta` holds something that JSON cannot, or the metadata of an existing
                `README.md` cannot be read.
            WriteError: if the disk is full or the folder cannot be written; nothing is changed.
        """
        from salve_plugin.share import dictionaries

        return dictionaries.save(self, folder)

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], **where: "Unpack[Where]"
    ) -> "Dictionary":
        """Read a dictionary that `save_pretrained` or `push_to_hub` wrote, bit for bit.

        Everything is checked before anything is used: any changed bit in either file is found.

        Args:
            source: a local folder, or a Hub repository as "user/name".
            **where: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
                `force_download` and `endpoint`, see `salve_plugin.share.sources.Where`.

        Raises:
            ArtifactError: if there is no dictionary, or it is damaged, changed, incomplete, of
                another program or of a newer format.
            HubError: if the Hub refuses or cannot be reached and the cache does not help.
            InputError: if an argument is ill-formed.
            WriteError: if the Hub client's cache cannot be written.
        """
        from salve_plugin.share import dictionaries

        return dictionaries.load(source, **where)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        tag: str | None = None,
        endpoint: str | None = None,
    ) -> "Pushed":
        """Put the dictionary on the Hub in one commit, or leave everything there as it was.

        Afterwards `origin` names the commit (not of a pull request, which may never be merged), so
        that artifacts of edits made with it refer to it. Arguments and errors are those of
        `salve_plugin.EditArtifact.push_to_hub`.

        Returns:
            The exact place; its `reference.commit` as `revision` always gets the same bytes.
        """
        from salve_plugin.share import dictionaries
        from salve_plugin.share.hub.access import Access
        from salve_plugin.share.hub.push import Target

        target = Target(
            repo_id,
            revision=revision,
            subfolder=subfolder,
            private=private,
            commit_message=commit_message,
            create_pr=create_pr,
            tag=tag,
            access=Access(endpoint, token),
        )
        return dictionaries.upload(self, target)

    def _rows(self, x: Tensor) -> Tensor:
        """Return activations in the dictionary's type, checked."""
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"activations must be a tensor of real numbers, got {kind}")
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
