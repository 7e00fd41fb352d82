"""A learned dictionary: affine encoder, activation function, atoms of unit norm."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salve_plugin.discover import dictionary_files as files
from salve_plugin.discover import learners
from salve_plugin.discover.learners.base import COMMON, Learner
from salve_plugin.discover.saelens_layout import WEIGHTS_FILE
from salve_plugin.discover.unit_atoms import check_tensors
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.modes import without_autocast
from salve_plugin.site import Site
from salve_plugin.store.digest import content_digest
from salve_plugin.store.hub.address import Origin
from salve_plugin.store.hub.push import How, Pushed
from salve_plugin.store.place import Existing
from salve_plugin.store.reference import Reference
from salve_plugin.store.seal import Format
from salve_plugin.store.stored import Opened, Packed, Stored


class Dictionary(Stored, Tabular, nn.Module):
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

    format: ClassVar[Format] = files.DICTIONARY

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        learner: Learner,
        site: Site,
        meta: Mapping[str, object] | None = None,
        *,
        origin: Reference | None = None,
    ) -> None:
        """Build a frozen dictionary from its tensors, by name.

        Raises:
            InputError: if a tensor is missing, of the wrong shape or not finite, or an atom does
                not have unit norm.

        Example:
            >>> atoms = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
            >>> tensors = {"atoms": atoms, "encoder_weight": atoms,
            ...            "encoder_bias": torch.zeros(8), "decoder_bias": torch.zeros(4)}
            >>> site = Site("unembed.hook_in", "fc", "in", "pooled", 4)
            >>> dictionary = Dictionary(tensors, learners.create("topk", {"k": 2}), site)
            >>> dictionary.encode(torch.ones(3, 4)).shape
            torch.Size([3, 8])
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
        self._digest: tuple[tuple[object, ...], str] | None = None
        self.origin = origin
        self.eval()
        # Last, since it encodes with all that was set above.
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
        # The digest is kept beside it: only what was pulled or pushed is at that place.
        if self._origin is None or self._origin[1] != self.digest:
            return None
        return self._origin[0]

    @origin.setter
    def origin(self, reference: Reference | None) -> None:
        self._origin = None if reference is None else (reference, self.digest)

    @property
    def network(self) -> str | None:
        """The network whose activations it was learned from, see `Activations.network_sha256`.

        None if `meta` does not say so.
        """
        network = self.meta.get("network_sha256")
        return network if isinstance(network, str) else None

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.atoms.shape[0]

    @property
    def is_affine(self) -> bool:
        """Whether codes are E x + b_e as they stand, as the paper's are."""
        return self._learner.affine

    @property
    def width(self) -> int:
        """Number of features D of the activations."""
        return self.atoms.shape[1]

    def extra_repr(self) -> str:
        """Say what kind of dictionary it is."""
        size = f"n_latents={self.n_latents}, width={self.width}"
        return f"{self.learner!r}, {size}, site={self.site.name!r}"

    def as_table(self) -> Table:
        """Return what it is, and what `fit` noted of how well it reconstructs."""
        noted = {
            "held-out R²": "held_out_r2", "active latents of a row (L0)": "l0",
            "dead share": "dead_share", "rows learned from": "n_rows",
        }  # fmt: skip
        known = {
            "learner": repr(self._learner),
            "latents": self.n_latents,
            "width": self.width,
            "site": self.site.name,
            **{title: self.meta.get(name) for title, name in noted.items()},
            "from": None if self.origin is None else str(self.origin),
            "digest": self.digest,
        }
        rows = [(name, value) for name, value in known.items() if value is not None]
        return Table("Dictionary", ("", ""), rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Dictionary":
        self._digest = None  # `to()` and its kin may put other values at an old address
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch's own hook
        return self

    @without_autocast()
    def pre_activation(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows latents"]:
        """Return E x + b_e, or what the learner has in its place; differentiable.

        Raises:
            InputError: if the last axis of `x` is not `width` long.
        """
        return self._learner.pre_activation(self.tensors, self._rows(x))

    @without_autocast()
    def encode(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows latents"]:
        """Return the code z of activations; differentiable.

        Raises:
            InputError: if the last axis of `x` is not `width` long.
        """
        return self._learner.encode(self.tensors, self._rows(x))

    @without_autocast()
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

    @property
    def digest(self) -> str:
        """The SHA-256 of the dictionary's content: tensors, learner, options and site.

        It does not depend on `meta`, on the device, or on how a file lays the tensors out. It is
        computed again only when a tensor was changed (by `half()`, `to()` or in place); writing
        through `Tensor.data` or a NumPy array is something that torch does not tell.
        """
        # Hashing all tensors takes long for a look-up; whether one was changed is told by its
        # version.
        state = (self._learner, self.site, *map(_version, self.parameters()))
        if self._digest is None or self._digest[0] != state:
            fields = {"learner": self.learner, "options": self.options, "site": self.site.to_json()}
            self._digest = state, content_digest(fields, self.tensors)
        return self._digest[1]

    def packed(self, existing: Existing, previous: Mapping[str, Any] | None) -> Packed:
        """Return what is to be written; see `Stored.packed`."""
        config, weights = files.manifest_of(self)
        return Packed(config, {WEIGHTS_FILE: weights})

    @classmethod
    def built(cls, opened: Opened, origin: Origin | None) -> "Dictionary":
        """Return the dictionary from its files; see `Stored.built`."""
        own = opened.record.metadata.salve_plugin
        weights, tensors = files.tensors_of(opened.config, opened.files[WEIGHTS_FILE])
        place = None if origin is None else origin.reference
        dictionary = cls.rebuilt(own.learner, own, tensors, own.digest, place)
        files.check_consistent(opened.config, weights, dictionary)
        return dictionary

    @classmethod
    def rebuilt(
        cls,
        learner: str,
        fields: files.DictionaryFields,
        tensors: Mapping[str, Tensor],
        digest: str,
        origin: Reference | None = None,
    ) -> "Dictionary":
        """Return the dictionary that has this digest, from checked fields.

        Args:
            learner: its name.
            fields: its site, options and meta.
            tensors: by name.
            digest: what it must be.
            origin: where on the Hub it is from.

        Raises:
            ArtifactError: if there is no such learner, the parts do not make a dictionary, or it is
                another one.
        """
        try:
            # Before the dictionary is made, which codes a row to try itself out.
            _check_cost(learner, fields.options)
            rule = learners.create(learner, fields.options)
            dictionary = cls(tensors, rule, fields.site, fields.meta, origin=origin)
        except (InputError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"this is no dictionary of learner {learner[:100]!r}: {str(error)[:500]}. If the "
                "learner is your own, register it first with salve_plugin.register"
            ) from error
        if dictionary.digest != digest:
            raise ArtifactError(
                f"the dictionary is {dictionary.digest}, it should be {digest}; it was changed by "
                "hand"
            )
        return dictionary

    def push_to_hub(self, repo_id: str, **how: Unpack[How]) -> Pushed:
        """Put the dictionary on the Hub in one commit; see `EditArtifact.push_to_hub`.

        Afterwards `origin` names the commit (not of a pull request, which may never be merged), so
        that artifacts of edits made with it refer to it.
        """
        pushed = super().push_to_hub(repo_id, **how)
        if pushed.pull_request is None:
            self.origin = pushed.reference
        return pushed

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
        # What shapes a learner's own tensors must have only its code knows: it is tried out.
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


def _version(parameter: nn.Parameter) -> tuple[object, ...]:
    """Return what changes whenever torch changes a parameter."""
    # Tensors of inference mode do not count their versions: nothing equals a fresh object.
    count = object() if parameter.is_inference() else parameter._version
    return id(parameter), parameter.data_ptr(), parameter.dtype, tuple(parameter.shape), count


def _check_cost(learner: str, options: Mapping[str, object]) -> None:
    known = learners.LEARNERS.get(learner)
    for option, most in known.costly.items() if known else ():
        value = options.get(option, 0)
        if not (isinstance(value, int | float) and value <= most):
            raise InputError(f"its option {option} is {value!r}, more than the {most} that is read")
