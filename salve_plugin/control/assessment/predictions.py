"""What a dictionary's codes say that an edit does to the logits, beside what it does.

A dictionary says that latent l contributes z_l v_l to what the classifier reads. To take that away
changes the logits by -z_l W v_l, the gradient times the change. An edit scales or replaces weights,
whatever the dictionary says of an image: how much of its effect the codes predict is measured here,
on the very images of an assessment, batch by batch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.assessment.batches import Batch
from salve_plugin.control.assessment.changes import Changes
from salve_plugin.control.assessment.outcomes import MOST_ALONE, Prediction
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import Gate, LowRankMap
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.hooks import HookedModel

CONTROLS = 19
"""Other latents whose contribution is tried as the prediction: one in 20 is 95 %."""
LEVEL = 0.95


class Predictions:
    """Sums over images for the latents of an edit, and for others in their place."""

    def __init__(
        self, edit: Edit, dictionary: Dictionary, changes: Changes, target: int | None, seed: int
    ) -> None:
        """Draw the other latents.

        Args:
            edit: of latents of the dictionary.
            dictionary: of all that the classifier reads.
            changes: of the classifier alone.
            target: the class whose logit is looked at by itself.
            seed: of the draw.
        """
        head, edited = changes.head, changes.edited_head
        assert head is not None  # the dictionary is of what it reads
        assert edited is not None
        self._rows = (head.weight != edited.weight).any(1).nonzero()[:, 0]
        self._target = (self._rows == (-1 if target is None else target)).nonzero()[:, 0]
        own = tuple(dict.fromkeys(edit.latents))
        self._reported = reported_sets(edit)
        sets = [
            [latents, *other_latents(latents, own, dictionary.n_latents, seed)]
            for latents in self._reported
        ]
        # Only these of a few thousand latents are kept of each image.
        self._used = torch.tensor(sorted({i for group in sets for one in group for i in one}))
        self._places = [
            [torch.searchsorted(self._used, torch.tensor(one)) for one in group] for group in sets
        ]
        self._dictionary = dictionary
        atoms = dictionary.atoms.detach().cpu().double()[self._used]
        self._pull = sign_of(edit) * atoms @ head.weight[self._rows].T
        self._overlap = self._pull @ self._pull.T
        self._change = torch.zeros((), dtype=torch.float64)
        self._products = torch.zeros(len(self._used), dtype=torch.float64)
        self._sizes = [torch.zeros(len(group), dtype=torch.float64) for group in self._places]
        self._lines: list[Tensor] = []

    @classmethod
    def of(
        cls,
        hooked: HookedModel,
        edit: Edit,
        dictionary: Dictionary | None,
        changes: Changes,
        target: int | None,
        seed: int,
    ) -> "Predictions | None":
        """Return them without an image; None where codes of the dictionary predict nothing.

        They do where the edit is of latents of this very dictionary, changes the classifier alone,
        and the dictionary is of all that the classifier reads.
        """
        if dictionary is None or not edit.latents or not changes.is_of_head:
            return None
        own = edit.dictionary_digest == dictionary.digest
        if not own or hooked.head_sites != (dictionary.site.name,) or changes.head is None:
            return None
        return cls(edit, dictionary, changes, target, seed)

    def add(self, batch: Batch) -> None:
        """Take a batch into account."""
        if batch.inputs is None:  # pooled behind the classifier: there is no one input an image
            self._reported = []
            return
        x = batch.inputs.to(self._dictionary.atoms)
        codes = self._dictionary.encode(x)[:, self._used.to(x.device)].cpu().double()
        change = (batch.after - batch.before)[:, self._rows]
        self._change += change.square().sum()
        # With predictions Σ z_l u_l, products and squares are those of codes and of the u: the
        # logits that are predicted are never laid out, for a thousand classes and twenty controls.
        self._products += (codes * (change @ self._pull.T)).sum(0)
        for group, sizes in zip(self._places, self._sizes, strict=True):
            for at, places in enumerate(group):
                some = codes[:, places]
                sizes[at] += ((some.T @ some) * self._overlap[places][:, places]).sum()
        if len(self._target):
            row = self._target[0]
            pull = self._pull[:, row]
            predicted = [codes[:, group[0]] @ pull[group[0]] for group in self._places]
            self._lines.append(torch.stack([change[:, row], *predicted], 1))

    def records(self) -> tuple[Prediction, ...]:
        """Return what each latent's codes predict, and if there are several, all together."""
        lines = torch.cat(self._lines) if self._lines else None
        records = []
        for number, latents in enumerate(self._reported, 1):
            group, sizes = self._places[number - 1], self._sizes[number - 1]
            products = torch.stack([self._products[places].sum() for places in group])
            squares = sizes * self._change
            line = None if lines is None else (lines[:, number], lines[:, 0])
            records.append(prediction_of(latents, products, squares, line))
        return tuple(records)


def prediction_of(
    latents: tuple[int, ...],
    products: Float64[Tensor, " sets"],
    squares: Float64[Tensor, " sets"],
    line: tuple[Float64[Tensor, " images"], Float64[Tensor, " images"]] | None,
) -> Prediction:
    """Return what is said of latents, from sums over images and classes.

    Args:
        latents: which.
        products: of the measured change and what is predicted, by their own set first, then by each
            other.
        squares: of the two, the sums of squares multiplied.
        line: predicted and measured change of the target's logit; None without a target.
    """
    # The squared cosine of prediction and change; beyond 1 by rounding only.
    shares = (products.square() / squares).clamp(max=1.0).where(squares > 0, 0.0)
    null = r2 = slope = None
    if len(shares) > 1:
        # Of 19 others the upper neighbour of the quantile is the largest, which one more of their
        # kind exceeds in one case of 20.
        null = float(shares[1:].quantile(LEVEL, interpolation="higher"))
    if line is not None:
        fitted = [float(part) for part in fitted_lines(*line)]
        if fitted[0] == fitted[0]:  # it is NaN where nothing varies
            r2, slope = min(fitted[0], 1.0), fitted[1]
    return Prediction(float(shares[0]), null, latents, r2, slope)


def reported_sets(edit: Edit) -> list[tuple[int, ...]]:
    """Return the latents of an edit one by one, unless they are too many, and all together."""
    own = tuple(dict.fromkeys(edit.latents))
    alone = [(latent,) for latent in own] if len(own) <= MOST_ALONE else []
    return [*alone, *([own] if len(own) > 1 else [])]


def sign_of(edit: Edit) -> float:
    """Return 1 for an edit that adds to the latents' contribution, -1 for one that takes away."""
    operator = edit.operator
    adds = (isinstance(operator, Gate) and operator.mode == "enhance") or (
        isinstance(operator, LowRankMap) and operator.scale > 1
    )
    return 1.0 if adds else -1.0


def other_latents(
    latents: Sequence[int], excluded: Sequence[int], n_latents: int, seed: int
) -> list[tuple[int, ...]]:
    """Return up to `CONTROLS` random sets of as many other latents, the same for the same seed.

    Args:
        latents: whose place they take.
        excluded: those that no set may have.
        n_latents: of the dictionary.
        seed: of the draw.
    """
    random = torch.Generator().manual_seed(seed * n_latents + latents[0])
    drawn: dict[tuple[int, ...], None] = {}  # each set once
    size = len(latents)
    for _ in range(CONTROLS):
        order = torch.randperm(n_latents, generator=random)
        others = order[~torch.isin(order, torch.tensor(list(excluded)))]
        # No further than needed: to cut a dictionary of thousands of latents up takes longer than
        # all that is done with the sets.
        for start in range(0, len(others) - size + 1, size):
            drawn[tuple(sorted(others[start : start + size].tolist()))] = None
            if len(drawn) == CONTROLS:
                return list(drawn)
    return list(drawn)


def fitted_lines(
    predicted: Float64[Tensor, "images ..."], measured: Float64[Tensor, "images ..."]
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]]:
    """Return R² and slope of the line through predicted and measured, column by column.

    NaN where one of the two is the same for all images.
    """
    a, b = predicted - predicted.mean(0), measured - measured.mean(0)
    both, own, other = (a * b).sum(0), a.square().sum(0), b.square().sum(0)
    # Of equal numbers the mean may be off by rounding, and a line through that says nothing.
    least = 1e-24 * predicted.square().sum(0), 1e-24 * measured.square().sum(0)
    varies = (own > least[0]) & (other > least[1])
    nan = torch.full_like(own, torch.nan)
    return (
        torch.where(varies, both.square() / (own * other), nan),
        torch.where(varies, both / own, nan),
    )
