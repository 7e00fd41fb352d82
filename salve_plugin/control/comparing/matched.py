"""Edits at an equal behavioural budget: as much of each as moves the predictions by a given KL."""

import math
from collections.abc import Callable

from salve_plugin.control.comparing.multiples import at_multiple, does_nothing
from salve_plugin.control.comparing.responses import Data, Responses, mean_kl
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import Gate
from salve_plugin.control.operators.base import real
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.modes import without_autocast

HALVINGS = 60
"""Bisections after which neighbouring multiples differ by rounding alone."""


@without_autocast()
def with_kl(
    hooked: HookedModel,
    edit: Edit,
    data: Data,
    kl: float,
    *,
    tolerance: float = 0.01,
    most: float | None = None,
) -> Edit:
    r"""Return the multiple of an edit at which the mean KL(base || edited) is a given one.

    Edits of different kinds have no common unit of strength; how far they move the predictions on
    images that they are not meant for is one (steering at calibrated strengths, as in intervention
    scoring of features: Paulo et al. 2024, arXiv 2410.13928). From the edit as given the multiple
    is doubled or halved until the target lies between two neighbours, then bisected. The divergence
    need not grow with the multiple: the result is a crossing nearest to the edit as given, on the
    grid of powers of two, and not always the only one.

    Args:
        hooked: the attached model; edits on it belong to the base.
        edit: gate, map or update, at any site; the edit's own strength is where the search begins.
        data: images to calibrate on: recorded inputs of the classifier, for an edit there, or a
            loader of (images, labels).
        kl: the target, in nats an image, above 0.
        tolerance: how far the result may be off, relative to the target.
        most: the largest multiple that is tried. By default 1 for maps and updates, which beyond it
            do more than they say, and for gates that at which $\alpha$ times the largest reach is
            1000.

    Raises:
        InputError: if the target is not reached up to `most`, the edit changes nothing, or a weight
            of low precision jumps across the target; or as for `evaluate`.
        SalveError: as `Edit.apply_`, if the edit is not one of this model.
    """
    if not 0 < real(kl, "kl") < 1e6 or not 0 < real(tolerance, "tolerance") < 1:
        raise InputError(
            f"kl {kl} and tolerance {tolerance}: expected kl above 0, tolerance in (0, 1)"
        )
    if not isinstance(edit, Edit) or does_nothing(edit.operator):
        raise InputError(
            f"{edit!r:.200} changes nothing, so that no multiple of it does; make it with any "
            "strength above 0"
        )
    most = _most(edit) if most is None else most
    if not 0 < real(most, "most") < math.inf:
        raise InputError(f"most {most} is no largest multiple; expected a number above 0")
    responses = Responses.of(hooked, data, by_class=False)

    def divergence(multiple: float) -> float:
        return mean_kl(responses.base, responses.after(at_multiple(edit, multiple)))

    low, high = _bracket(divergence, kl, most)
    for _ in range(HALVINGS):
        # The root of the product: multiples are strengths, whose ratios count.
        multiple = math.sqrt(low * high) if low else high / 2
        reached = divergence(multiple)
        if abs(reached - kl) <= tolerance * kl:
            return at_multiple(edit, multiple)
        low, high = (multiple, high) if reached < kl else (low, multiple)
    raise InputError(
        f"at {high:.9g} times the edit the divergence jumps across {kl}, to "
        f"{divergence(high):.4g}: the weights are rounded too coarsely for it; give a larger "
        "tolerance"
    )


def _bracket(divergence: Callable[[float], float], kl: float, most: float) -> tuple[float, float]:
    """Return neighbouring multiples with less divergence than the target, and at least as much."""
    multiple = min(1.0, most)
    reached = largest = divergence(multiple)
    if reached >= kl:
        for _ in range(HALVINGS):
            half = multiple / 2
            if divergence(half) < kl:
                return half, multiple
            multiple = half
        return 0.0, multiple  # next to nothing still does too much: only 0 does less
    while multiple < most:
        double = min(2 * multiple, most)
        reached = divergence(double)
        if reached >= kl:
            return multiple, double
        multiple, largest = double, max(largest, reached)
    raise InputError(
        f"up to {most:g} times the edit, the mean divergence is at most {largest:.4g} and never "
        f"{kl}; ask for less, or allow more with most="
    )


def _most(edit: Edit) -> float:
    if isinstance(edit.operator, Gate):
        # Beyond, all features that are reached at all are long closed.
        return max(1.0, 1e3 / (edit.operator.strength * float(edit.operator.reach.max())))
    return 1.0
