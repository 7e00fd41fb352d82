"""Is the first-order prediction of an edit's effect what the edited weights do?

A dictionary says that latent l contributes z_l v_l to the activation x. Taking it away should
change the logits by their gradient times that: -z_l W v_l. The edit that is meant to do so scales
columns of W (SALVE, Eq. 1): it changes the logits by x (W' - W)^T, whatever the dictionary says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.assessment.predictions import fitted_lines, other_latents
from salve_plugin.control.operators.base import real
from salve_plugin.control.operators.gate import Gate, scaled_rows
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.hooks import HookedModel
from salve_plugin.integers import seed_number, whole
from salve_plugin.kinds import several
from salve_plugin.modes import without_autocast
from salve_plugin.network import OnBaseMismatch
from salve_plugin.validate.evidence.head import (
    ReadHead,
    check_parts,
    over_classes,
    read_head,
    rows_of,
)
from salve_plugin.validate.evidence.permuting import upper

IMAGES = 1024


@dataclass(frozen=True, eq=False, repr=False)
class PredictedEffect(Tabular):
    """How well -z W v, latent by latent, says what the gate of the latent does to the logits.

    Attributes:
        latents: which (latents,).
        strength: of the gates, on all rows of the classifier.
        r2: squared correlation over images of predicted and measured change of each class's logit,
            (latents, classes); NaN where one of them does not vary.
        slope: measured change for one unit of predicted change, fitted with an intercept, likewise.
        explained: share of the measured change's sum of squares, over images and classes, that the
            prediction explains at one common slope without an intercept, (latents,).
        explained_null: what the best of 95 % of other latents explains, put in the latent's place.
        classes: names by class; None if the recording has none.
        n_images: that it was measured on.
    """

    latents: Int64[Tensor, " latents"]
    strength: float
    r2: Float64[Tensor, "latents classes"]
    slope: Float64[Tensor, "latents classes"]
    explained: Float64[Tensor, " latents"]
    explained_null: Float64[Tensor, " latents"]
    classes: tuple[str, ...] | None
    n_images: int

    def __repr__(self) -> str:
        """Say in one line how much is explained."""
        return (
            f"<PredictedEffect of {len(self.latents)} latents on {self.r2.shape[1]} logits, "
            f"{self.n_images} images: median share explained "
            f"{float(self.explained.nanmedian()):.3f}, by other latents "
            f"{float(self.explained_null.nanmedian()):.3f}>"
        )

    def table(self) -> str:
        """Return one line for each latent, as text."""
        return str(self)

    def as_table(self) -> Table:
        """Return one row for each latent: what is explained, beside chance, and by class."""
        rows = [
            (
                int(latent), float(self.explained[row]), float(self.explained_null[row]),
                float(self.r2[row].nanmedian()), float(self.slope[row].nanmedian()),
            )
            for row, latent in enumerate(self.latents)
        ]  # fmt: skip
        return Table(
            f"Predicted against measured change of the logits, strength {self.strength:g}",
            ("latent", "explained", "by other latents", "median R² of a class", "median slope"),
            rows,
            ("explained: of the sum of squares over images and classes, at one slope",),
        )


@torch.no_grad()
@without_autocast()
def predicted_effect(
    hooked: HookedModel,
    dictionary: Dictionary,
    acts: Activations,
    *,
    latents: Sequence[int] | None = None,
    strength: float = 1.0,
    images: int = IMAGES,
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> PredictedEffect:
    r"""Compare what a dictionary predicts of suppressing each latent with what the edit does.

    Predicted is the gradient times the change, $-z_l W v_l$ for a classifier $W$; measured is the
    change of the logits when `suppress(hooked, dictionary, latent=l, strength=strength)` has edited
    the weights. Up to the strength at which a factor of the gate reaches 0 the measured change is
    proportional to the strength, so that shares and R² do not depend on it.

    Args:
        hooked: the recorded model.
        dictionary: of what the classifier reads.
        acts: recording of that.
        latents: which to compare; None for all.
        strength: of the gates.
        images: at most so many of the recording, evenly from all its classes.
        seed: of the choice of other latents.
        on_base_mismatch: "warn" goes on with parts of another network.

    Raises:
        InputError: if the classifier reads something else or more, there is no such latent, or the
            strength or the number of images is not positive.
        BaseMismatchError: if dictionary, recording and model are not of one network.
    """
    check_parts(hooked, dictionary, acts, on_base_mismatch)
    n_latents = dictionary.n_latents
    given = several(range(n_latents) if latents is None else latents, "latents", "their numbers")
    chosen = [whole(each, "latent") for each in given]
    unknown = [latent for latent in chosen if not 0 <= latent < n_latents]
    if unknown or not chosen:
        raise InputError(f"latents {unknown or chosen}: expected some of 0 to {n_latents - 1}")
    images, seed = whole(images, "images", least=1), seed_number(seed)
    if not real(strength, "strength") > 0:
        raise InputError(f"strength {strength}: expected one above 0")
    head = read_head(hooked, dictionary, acts)
    x = rows_of(acts, over_classes(acts.image_labels().long(), images))
    codes = dictionary.encode(x.to(dictionary.atoms.device)).cpu().double()
    atoms = dictionary.atoms.detach().cpu()
    r2, slope, shares, nulls = [], [], [], []
    for latent in chosen:
        change = gate_change(head, x.double(), Gate(atoms[latent, None], strength))
        predicted = -codes[:, latent, None] * head.pull[latent]
        line = fitted_lines(predicted, change)
        r2.append(line[0])
        slope.append(line[1])
        # Each other latent predicts, in its place, what the gate of this one does.
        others = [other for (other,) in other_latents([latent], [latent], n_latents, seed)]
        share = explained(change, codes[:, [latent, *others]], head.pull[[latent, *others]])
        shares.append(share[0])
        nulls.append(upper(share[1:, None])[0] if others else torch.tensor(torch.nan).double())
    return PredictedEffect(
        torch.tensor(chosen), strength, torch.stack(r2), torch.stack(slope),
        torch.stack(shares), torch.stack(nulls), acts.classes, len(x),
    )  # fmt: skip


def gate_change(
    head: ReadHead, x: Float64[Tensor, "images width"], gate: Gate
) -> Float64[Tensor, "images classes"]:
    """Return what the gate on all rows of the classifier adds to the logits."""
    weight = head.gated
    # Of the weights' difference: that of the logits would lose what a weak gate adds to them.
    return x @ (scaled_rows(weight, gate.factors, None) - weight).T


def gate_shares(
    head: ReadHead,
    x: Float64[Tensor, "images width"],
    products: Float64[Tensor, "width width"],
    gate: Gate,
    codes: Float64[Tensor, "images some"],
    pulls: Float64[Tensor, "some classes"],
) -> Float64[Tensor, " some"]:
    """Return `explained` of what `gate_change` returns, without laying a change of logits out.

    The change is X D W^T with D = diag(m - 1), so that <change, z u^T> is the sum over features of
    d (X^T z)(W^T u), and its sum of squares d^T (X^T X * W^T W) d, elementwise products: of
    thousands of latents, each costs features times features and not images times features times
    classes.

    Args:
        head: the classifier.
        x: its inputs.
        products: `products_of` these.
        gate: on all rows.
        codes: of the latents that predict.
        pulls: what one unit of each adds to each logit.
    """
    d = gate.factors.double() - 1
    product = d @ ((x.T @ codes) * (head.gated.T @ pulls.T))
    # A sum of squares; of a change that is rounding, rounding may be below 0.
    total = (d @ products @ d).clamp(min=0)
    return _squared_cosine(product, total, codes, pulls)


def products_of(
    head: ReadHead, x: Float64[Tensor, "images width"]
) -> Float64[Tensor, "width width"]:
    """Return X^T X times W^T W, element by element, for `gate_shares`."""
    return (x.T @ x) * (head.gated.T @ head.gated)


def explained(
    change: Float64[Tensor, "images classes"],
    codes: Float64[Tensor, "images some"],
    pulls: Float64[Tensor, "some classes"],
) -> Float64[Tensor, " some"]:
    """Return the share of a change's sum of squares that is a multiple of each z u^T.

    It is the squared cosine of the two, over images and classes; 0 for a latent without effect.
    """
    # <change, z u^T> is z^T (change u): the products are never laid out.
    # One slope for all classes: with one for each, a latent that moves other logits than the gate
    # does would be fitted class by class.
    product = (codes * (change @ pulls.T)).sum(0)
    return _squared_cosine(product, change.square().sum(), codes, pulls)


def _squared_cosine(product: Tensor, total: Tensor, codes: Tensor, pulls: Tensor) -> Tensor:
    """Return the squared cosines of each z u^T and a change with these products and this square."""
    size = total * codes.square().sum(0) * pulls.square().sum(1)
    return torch.where(size > 0, product.square() / size.clamp(min=1e-300), 0.0)
