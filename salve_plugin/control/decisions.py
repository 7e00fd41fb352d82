r"""A classifier's decisions as functions of an edit's strength, and where they change.

Under a gate a logit is piecewise linear in $\alpha$ (`salve_plugin.control.knots`). Under a
low-rank map at the head's input it is a straight line in the amount $t = 1-\lambda$: from
$x' = x - t\,U(V^Tx - c)$ follows $z'_k = z_k - t\,(W_kU)(V^Tx - c)$, for the edited rows $k$. Where
the classifier carries edits already, W is its pristine weight, and a gate scales what other gates
left of that (`salve_plugin.control.layered_head`).
"""

from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.flips import flip
from salve_plugin.control.knots import LIMIT
from salve_plugin.control.layered_head import LayeredHead
from salve_plugin.control.operators import Gate, LowRankMap
from salve_plugin.control.operators.base import real
from salve_plugin.control.solving import solve
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site


@dataclass(frozen=True, eq=False)
class Decisions:
    """A linear classifier with at least two logits; one logit is made two.

    Attributes:
        weight: (classes, width).
        bias: (classes,).
        threshold: that a single logit is compared with; 0 if there are several.
        is_binary: whether there is a single one.
        layers: of the weight, which edits that are on it may have made of several.
    """

    weight: Float64[Tensor, "classes width"]
    bias: Float64[Tensor, " classes"]
    threshold: float
    is_binary: bool
    layers: LayeredHead

    @classmethod
    def of(cls, hooked: HookedModel, site: Site, threshold: float) -> "Decisions":
        """Return the decisions of a model's head.

        Raises:
            InputError: as `check_threshold`.
        """
        # In float64, since leads are differences of logits that may be nearly equal.
        weight, bias = (values.cpu().double() for values in hooked.unembed(site))
        check_threshold(threshold, len(weight))
        layers = LayeredHead.of(hooked, site, weight)
        if len(weight) > 1:
            return cls(weight, bias, 0.0, False, layers)
        # What speaks for class 0 is how far the logit lies below the threshold: two mirrored rows,
        # which every edit of the one row scales alike.
        bias = bias - threshold
        rows, biases = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        return cls(rows, biases, float(threshold), True, layers.mirrored())

    def logits(self, x: Tensor) -> Float64[Tensor, "images classes"]:
        """Return the logits without the edit."""
        return torch.addmm(self.bias, x.double(), self.weight.T)

    def falls(
        self, edit: Edit, x: Tensor, logits: Tensor, asked: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """Return the exact and the linear strength at which logits fall to a share of themselves.

        Args:
            edit: a gate or a low-rank map.
            x: head inputs, (images, width).
            logits: of them.
            asked: whose logit, (images,).
            share: of it that is left.
        """
        goal = share * logits.gather(1, asked[:, None])[:, 0]
        if isinstance(edit.operator, LowRankMap):
            start = logits.gather(1, asked[:, None])[:, 0] - goal
            slope = self._slopes(edit, edit.operator, x).gather(1, asked[:, None])[:, 0]
            return _on_a_line(start, slope)
        weight, reach, x = self._gated(edit.gate, x)
        moves = self._edited(edit)[asked, None]
        # One problem for all labels: contributions take the place of activations, with weight one.
        terms = x.double() * weight[asked]
        # Of an image whose row is not edited all contributions stand still and go into the height.
        height = self.bias[asked] - goal + (terms * ~moves).sum(1)
        ones = terms.new_ones(1, terms.shape[1])
        return solve(ones, reach, terms * moves, height, edit.gate.mode, None)

    def flips(self, edit: Edit, x: Tensor, logits: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exact and the linear strength at which another logit reaches the asked one."""
        if isinstance(edit.operator, LowRankMap):
            slopes, own = self._slopes(edit, edit.operator, x), asked[:, None]
            # The lead over each rival and how fast it is lost: both logits are lines in the amount,
            # and so is their difference, whether or not either row is edited.
            lead, gain = logits.gather(1, own) - logits, slopes.gather(1, own) - slopes
            lead.scatter_(1, own, torch.inf)  # nobody overtakes himself
            exact, line = _on_a_line(lead, gain)
            return exact.amin(1), line.amin(1)
        rows = None if self.is_binary else edit.rows
        weight, reach, x = self._gated(edit.gate, x)
        return flip(weight, self.bias, reach, x, asked, rows, edit.gate.mode)

    def _gated(self, gate: Gate, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight, reach and inputs of which the gate scales every column by its reach."""
        layers = self.layers
        if layers.added is None:
            return self.weight, gate.reach, x
        # What was added stands still: the same inputs once more, in columns that no latent reaches.
        weight = torch.cat([layers.scaled, layers.added], 1)
        return weight, torch.cat([gate.reach, torch.zeros_like(gate.reach)]), torch.cat([x, x], 1)

    def _edited(self, edit: Edit) -> Bool[Tensor, " classes"]:
        edited = torch.zeros(len(self.weight), dtype=torch.bool)
        rows = None if self.is_binary else edit.rows
        edited[slice(None) if rows is None else torch.tensor(rows)] = True
        return edited

    def _slopes(
        self, edit: Edit, low_rank_map: LowRankMap, x: Tensor
    ) -> Float64[Tensor, "images classes"]:
        """Return how fast each logit falls with the amount."""
        reading = x.double() @ low_rank_map.read.double() - low_rank_map.offset.double()
        read_by = self.layers.pristine @ low_rank_map.write.double()
        return reading @ read_by.T * self._edited(edit)


def _on_a_line(start: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """Return where lines reach zero, up to the limit and without one; 0 where they are there."""
    line = torch.where(start <= 0, 0.0, torch.where(fall > 0, start / fall, torch.inf))
    return torch.where(line <= LIMIT, line, torch.inf), line


def check_threshold(threshold: float, n_logits: int) -> None:
    """Refuse a threshold where several logits are compared with each other, or that is no number.

    Raises:
        InputError: with the number of logits.
    """
    if not isfinite(real(threshold, "threshold")) or (threshold and n_logits > 1):
        raise InputError(
            f"threshold {threshold} is to be a finite number, and is for a classifier with one "
            f"logit; of the {n_logits} here the largest decides if there are several"
        )
