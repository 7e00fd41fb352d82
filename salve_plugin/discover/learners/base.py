"""What distinguishes one dictionary learner from another."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from salve_plugin.discover.kernels.scratch import Scratch
from salve_plugin.discover.recording.team import Team

Tensors = dict[str, Tensor]
"""A dictionary's tensors by name: the four common ones and the learner's own."""

L0_TOLERANCE = 0.01
"""A latent counts as active if |z| exceeds this share of the data's root mean squared distance
from their mean: its atom, of norm 1, then moves the reconstruction by that much."""

COMMON = ("atoms", "decoder_bias", "encoder_bias", "encoder_weight")
"""The tensors that every dictionary has."""

Architecture = Literal["standard", "topk", "jumprelu", "gated"]
"""What SAELens calls the kinds of dictionary that it has in common with this package."""

CALIBRATION_ROWS = 1024
"""Rows that determine how large the first codes are."""


@dataclass(frozen=True, eq=False)
class Start:
    """What is known before the first step; rows are centred and have mean squared norm 1.

    Attributes:
        rows: a random sample of the training rows (sample, width).
        atoms: initial atoms (latents, width), rows of unit norm.
        gain: the encoder starts as gain · atoms, the tied encoder that reconstructs best.
        random: for whatever else the learner draws.
    """

    rows: Float[Tensor, "sample width"]
    atoms: Float[Tensor, "latents width"]
    gain: float
    random: torch.Generator

    @property
    def sample(self) -> Float[Tensor, "few width"]:
        """The rows that the encoder is calibrated with."""
        return self.rows[:CALIBRATION_ROWS]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.atoms.shape[0]

    def tensors(self) -> Tensors:
        """Return the four common tensors, tied, all of them trained.

        E = gain · V; the biases are zero, as suits centred rows.
        """
        tensors = {
            # A copy: training moves atoms in place, and the runs of the range test all begin here.
            "atoms": self.atoms.clone(),
            "encoder_weight": self.gain * self.atoms,
            "encoder_bias": torch.zeros(self.n_latents),
            "decoder_bias": torch.zeros(self.atoms.shape[1]),
        }
        return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@dataclass(frozen=True, eq=False)
class Step:
    """One batch, and what a loss may depend on besides it.

    Attributes:
        x: rows (rows, width), centred and with mean squared norm 1 over the data.
        dead: latents that have been silent for a whole pass over the data.
        progress: share of the steps done, from 0 to 1.
        weight: multiplies the sparsity penalty; L0 control moves it.
        random: seeded by the run's seed and the step, so that a resumed run draws the same.
        gradient: of the model's loss with respect to the rows, in units of `x`; None if unknown.
        team: the processes that share the batch.
        scratch: memory that each step uses again.
    """

    x: Float[Tensor, "rows width"]
    dead: Bool[Tensor, " latents"]
    progress: float = 0.0
    weight: float = 1.0
    random: torch.Generator = field(default_factory=torch.Generator)
    gradient: Float[Tensor, "rows width"] | None = None
    team: Team = field(default_factory=Team)
    scratch: Scratch = field(default_factory=Scratch)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one step computed.

    Attributes:
        loss: to be minimized, the mean over this process's rows.
        active: in how many of the rows each latent is active (latents,).
    """

    loss: Float[Tensor, ""]
    active: Int[Tensor, " latents"]


@dataclass(frozen=True)
class Learner(ABC):
    """The code, the training loss and the constraints of one kind of dictionary.

    A subclass is a frozen dataclass whose fields are its hyper-parameters, all of them plain JSON
    values and relative to centred data with mean squared norm 1. Its methods are functions of the
    tensors they are given: during training those of `prepare`, afterwards those of `finished`,
    folded to raw activations: with x = s x' + mean, codes become s times larger, and each extra
    tensor is multiplied by its power of s. The code of a row must not depend on other rows.

    Attributes:
        name: what `fit` and saved dictionaries call it.
        summary: one line on how it codes and learns.
        source: the publication; "after ..." where the formula is reconstructed from its abstract.
        extra: tensors that a finished dictionary has besides the common four, and the power of the
            scale that each is multiplied by when the scale is folded back.
        l0_control: how a target L0 is reached: it is the option `k`, or the penalty is weighted.
        revived: whether dead latents start anew from badly reconstructed rows.
        expansion: latents for each feature, if nobody says how many.
        learning_rate: if nobody gives one; None is what a range test finds.
        saelens: the architecture of SAELens that codes as its finished dictionary does, if one
            does. A subclass codes in another way, and so does not inherit it.
        affine: whether the code of a finished dictionary is E x + b_e as it stands, so that
            ablating a latent is an affine map of x.
        costly: options that time and memory of coding one row grow with, and the most of each that
            is read from a file.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    extra: ClassVar[Mapping[str, int]] = {}
    l0_control: ClassVar[Literal["k", "weight"] | None] = None
    revived: ClassVar[bool] = False
    expansion: ClassVar[float] = 4.0
    learning_rate: ClassVar[float | None] = None
    saelens: ClassVar[Architecture | None] = None
    affine: ClassVar[bool] = False
    costly: ClassVar[Mapping[str, int]] = {}

    def __init_subclass__(cls, **named: Any) -> None:
        """Forget the parent's form in SAELens: inherited unseen, it would write wrong codes."""
        super().__init_subclass__(**named)
        cls.saelens = vars(cls).get("saelens")

    def pre_activation(
        self, t: Tensors, x: Float[Tensor, "*rows width"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return E x + b_e."""
        return torch.nn.functional.linear(x, t["encoder_weight"], t["encoder_bias"])

    @abstractmethod
    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the code z of pre-activations, row by row; differentiable."""

    def encode(self, t: Tensors, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows latents"]:
        """Return the code z of rows; differentiable."""
        return self.activate(t, self.pre_activation(t, x))

    def decode(self, t: Tensors, z: Float[Tensor, "*rows latents"]) -> Float[Tensor, "*rows width"]:
        """Return the reconstruction z V + b_d; differentiable."""
        return z @ t["atoms"] + t["decoder_bias"]

    def initial_code(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
        """Return the code of a sample's pre-activations, to calibrate the first encoder with."""
        return torch.nn.functional.relu(pre)

    def prepare(self, start: Start) -> Tensors:
        """Return the tensors that training starts from; those that require grad are trained."""
        return start.tensors()

    @abstractmethod
    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the training loss of one batch and which latents were active."""

    def constrain(self, t: Tensors) -> None:
        """Bring the tensors back to where they must be after an optimizer step, in place."""
        if t["atoms"].requires_grad:
            t["atoms"] /= torch.linalg.vector_norm(t["atoms"], dim=1, keepdim=True)

    def finished(self, t: Tensors) -> Tensors:
        """Return the tensors of the finished dictionary, atoms at unit norm."""
        return {name: t[name].detach().clone() for name in (*COMMON, *self.extra)}


class Solver(Learner):
    """A learner without gradients: it reads the rows and returns its dictionary."""

    @abstractmethod
    def solve(self, start: Start, batches: Callable[[], Iterator[Tensor]]) -> Tensors:
        """Return the finished tensors.

        Args:
            start: the sample and the initial atoms.
            batches: starts one pass over the training rows, each batch (rows, width).
        """

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the reconstruction error, which `fit` reports but does not differentiate."""
        code = self.encode(t, step.x)
        error = (step.x - self.decode(t, code)).square().sum(-1).mean()
        return Outcome(error, (code != 0).sum(0))
