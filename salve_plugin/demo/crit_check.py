"""The exact critical strength against brute force: the edited network itself, evaluated again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salve_plugin.control.critical import alpha_crit
from salve_plugin.control.edit import Edit
from salve_plugin.control.knots import LIMIT
from salve_plugin.demo.measures import Experiment

SCAN = 400
THROUGH_NETWORK = 5
"""Images per class that go through the whole network with the edit applied at their root."""


@dataclass(frozen=True)
class CritCheck:
    """Critical strengths of one class's test images, checked.

    Attributes:
        label: the class.
        images: its test images with a positive logit.
        finite: of these, images whose logit some strength brings to zero.
        worst_residual: largest |logit of the edited network at the root| / |logit unedited|, of
            the images that went through the network.
        agree: images for which a scan of the edited head over strengths finds no logit at or below
            zero before the exact root, and one just behind it.
        linear_ratio: median of closed form / exact root; None without finite roots.
        left_at_linear: median share of the logit that is left at the closed form.
        really_left_at_linear: the same of the whole edited network, median over the images that
            went through it; None if there are none.
    """

    label: int
    images: int
    finite: int
    worst_residual: float
    agree: int
    linear_ratio: float | None
    left_at_linear: float | None
    really_left_at_linear: float | None


def check_crit(
    experiment: Experiment, edit: Edit, label: int, images: Sequence[Tensor] | Tensor
) -> CritCheck:
    """Compare the exact roots of a class's test images with brute force.

    Args:
        experiment: the network and its recordings.
        edit: whose direction and rows are asked about.
        label: the class.
        images: all test images, each (channels, height, width), in the order of the recording;
            only those that go through the network are asked for.
    """
    crit = alpha_crit(experiment.hooked, edit, experiment.test, target="zero", classes=[label])
    of_class = experiment.test.labels() == label
    weight, bias = (tensor.double() for tensor in experiment.hooked.unembed())
    x = experiment.test.tensor()[of_class].double()
    logits = x @ weight[label] + bias[label]
    positive = logits > 0
    x, logits = x[positive], logits[positive]
    rows = of_class.nonzero()[:, 0][positive]
    exact, linear = crit.values[positive], crit.linear[positive]

    def left(strengths: Tensor) -> Tensor:
        """Logits of the edited head, one strength an image."""
        factors = (1 - strengths[:, None] * edit.gate.reach).clamp(min=0)
        return (x * weight[label] * factors).sum(1) + bias[label]

    finite = exact.isfinite()
    agree = _agrees(left, exact, _last_strength(edit.gate.reach))
    usable = finite & linear.isfinite()
    at_root, at_linear = (
        _left(experiment, edit, label, images, rows[of][:THROUGH_NETWORK], strengths[of])
        for of, strengths in ((finite, exact), (usable, linear))
    )
    return CritCheck(
        label=label,
        images=len(x),
        finite=int(finite.sum()),
        worst_residual=float(at_root.abs().max()) if len(at_root) else 0.0,
        agree=int(agree.sum()),
        linear_ratio=_median((linear / exact)[usable]),
        left_at_linear=_median((left(linear.nan_to_num(posinf=0.0)) / logits)[usable]),
        really_left_at_linear=_median(at_linear),
    )


def _last_strength(reach: Tensor) -> float:
    """Return the strength at which every column is closed, or the largest that is asked about."""
    return min(1.01 / float(reach[reach > 0].min()), LIMIT / float(reach.max()))


def _agrees(left: Callable[[Tensor], Tensor], exact: Tensor, last: float) -> Tensor:
    finite = exact.isfinite()
    # Without a root the scan must stay above zero to its end.
    end = torch.where(finite, exact * (1 - 1e-9), torch.full_like(exact, last))
    above = torch.ones_like(finite)
    for share in torch.linspace(0, 1, SCAN, dtype=torch.float64):
        # Squared, since kinks crowd at small strengths.
        above &= left(end * share.square()) > 0
    behind = left(torch.where(finite, exact * (1 + 1e-9), end)) <= 0
    return above & (behind == finite)


def _left(
    experiment: Experiment,
    edit: Edit,
    label: int,
    images: Sequence[Tensor] | Tensor,
    rows: Tensor,
    strengths: Tensor,
) -> Tensor:
    """Return the share of the logit that the edited network leaves, one strength an image."""
    network = experiment.hooked.model
    shares = []
    for row, strength in zip(rows.tolist(), strengths.tolist(), strict=False):
        image = images[row]
        with torch.no_grad():
            before = float(network(image[None])[0, label])
            with edit.with_strength(strength).applied(network):
                after = float(network(image[None])[0, label])
        shares.append(after / before)
    return torch.tensor(shares)


def _median(values: Tensor) -> float | None:
    return float(values.median()) if len(values) else None
