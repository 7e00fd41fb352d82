"""Which latents a class or an attribute depends on: conditional means and the selection score."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.reads import check_read
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.selection_score import selection_scores
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.integers import whole
from salve_plugin.kinds import several
from salve_plugin.modes import without_autocast
from salve_plugin.network import OnBaseMismatch, check_one_network

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Features(Tabular):
    """The class-conditional profile of a dictionary's latents.

    Attributes:
        means: mean code of each class (classes, n_latents), float64; zero for a class without rows.
        spreads: standard deviation of each code within the classes (n_latents,), float64.
        counts: number of rows of each class (classes,); with tokens or maps, positions count.
        classes: class names by label; None if the data set has none.
        scores: selection score (classes, n_latents), see `selection_scores`. Where images belong to
            several classes, each class is set against the images without it.
        without: mean code of the images without each class (classes, n_latents), float64, where
            images belong to several classes; else None. Then spreads are over all images.
        network: of the recording, see `Activations.network_sha256`; None if it is not known.
        of_attribute: whether the classes are values of an attribute, given to `profile`, and not
            the labels of the recording: then they are no rows of the classifier.
    """

    means: Float[Tensor, "classes latents"]
    spreads: Float[Tensor, " latents"]
    counts: Int[Tensor, " classes"]
    classes: tuple[str, ...] | None
    scores: Float[Tensor, "classes latents"]
    network: str | None = None
    of_attribute: bool = False
    without: Float[Tensor, "classes latents"] | None = None

    def __repr__(self) -> str:
        """Say in one line how many latents, classes and rows there are."""
        classes, latents = self.means.shape
        kind = "values of an attribute" if self.of_attribute else "classes"
        return f"<Features: {latents} latents in {classes} {kind}, {int(self.counts.sum())} rows>"

    def as_table(self) -> Table:
        """Return for each class its dominant latent and the most specific ones."""
        rows = [
            (self.name_of(label), count, *self._latents_of(label))
            for label, count in enumerate(self.counts.tolist())
        ]
        several = ", each against the images without it" if self.without is not None else ""
        by = "attribute" if self.of_attribute else "class"
        return Table(
            f"{self.means.shape[1]} latents by {by}{several}",
            ("class", "rows", "dominant latent", "its mean code", "most specific (score)"),
            rows,
        )

    def _latents_of(self, label: int) -> tuple[int | None, float | None, str]:
        if not self.counts[label]:
            return None, None, "-"
        scores, dominant = self.scores[label], self.dominant(label)
        specific = ", ".join(f"{latent} ({scores[latent]:.3f})" for latent in self.ranked(label))
        return dominant, float(self.means[label, dominant]), specific

    def name_of(self, label: int) -> str:
        """Return the name of a class, its index where it has none."""
        return str(label) if self.classes is None else self.classes[label]

    def figure(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw the mean code of each class for the latents that are most specific to one.

        Args:
            path: also write it there, in the format of the suffix (PNG without one).

        Raises:
            InputError: if matplotlib does not know the format.
            WriteError: if the file cannot be written.
        """
        from salve_plugin.faces.features import features_figure

        return features_figure(self).written(path)

    def class_index(self, label: int | str) -> int:
        """Return the index of a class given by index or name.

        Raises:
            InputError: if there is no such class, or it has no row in the recording, or `label` is
                neither an integer nor a name.
        """
        known = len(self.counts)
        if isinstance(label, str):
            if self.classes is None or label not in self.classes:
                raise InputError(
                    f"no class named {label!r}; "
                    + (
                        f"choose one of {list(self.classes)}"
                        if self.classes
                        else f"the recording has no class names: give an index below {known}"
                    )
                )
            label = self.classes.index(label)
        label = whole(label, "a class")
        if not 0 <= label < known:
            names = f": {list(self.classes)}" if self.classes else ""
            raise InputError(f"no class {label}; there are {known}, from 0 to {known - 1}{names}")
        if self.counts[label] == 0:
            name = f" ({self.classes[label]!r})" if self.classes else ""
            raise InputError(
                f"class {label}{name} has no example in the recording, so nothing is known about "
                "its latents; record images of it"
            )
        return label

    def dominant(self, label: int | str) -> int:
        """Return argmax_l |mean of z_l over the class|, the paper's class feature.

        Raises:
            InputError: as for `class_index`.
        """
        return int(self.means[self.class_index(label)].abs().argmax())

    def ranked(self, label: int | str, n: int = 5) -> list[int]:
        """Return the `n` latents that are most specific to a class, best first.

        Raises:
            InputError: as for `class_index`, or if `n` is less than 1.
        """
        n = whole(n, "n", least=1)
        scores = self.scores[self.class_index(label)]
        return scores.argsort(descending=True, stable=True)[:n].tolist()


@torch.no_grad()
@without_autocast()
def profile(
    dictionary: Dictionary,
    acts: Activations,
    *,
    attribute: Sequence[int] | Tensor | None = None,
    names: Sequence[str] | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Features:
    """Average the codes of a recording by class, in one pass and in float64.

    Where images belong to several classes (multi-hot labels), each class's images are set against
    those without it, as `attribute=acts.multi_hot()[:, label]` sets them for one class.

    Args:
        dictionary: of the recording's site.
        acts: recording of the network that the dictionary was learned from.
        attribute: another label for each image (images,), from 0, such as whether it has a
            watermark: the profile is then by attribute, and is refused where rows of the classifier
            are meant.
        names: of the attribute's values.
        on_base_mismatch: "warn" goes on with a recording of another network, such as a fine-tuned
            copy.

    Raises:
        InputError: if the dictionary was learned at another site, or the attribute has no label for
            each image.
        BaseMismatchError: if it was learned from another network.
        ReadError: if a shard is missing or damaged.
    """
    check_read(dictionary, acts)
    check_one_network(
        {"the dictionary": dictionary.network, "the recording": acts.network_sha256},
        on_base_mismatch,
    )
    if attribute is None and acts.labelling == "multi-hot":
        return _profile_of_several(dictionary, acts)
    names = None if names is None else several(names, "names", "one for each value")
    values = None if attribute is None else _attribute(attribute, acts.n_images)
    n_classes = acts.n_classes if values is None else int(values.max()) + 1
    if names is not None and (values is None or len(names) != n_classes):
        raise InputError(
            f"{len(names)} names for {n_classes} values of an attribute; give one a value, and the "
            "attribute"
        )
    sums = torch.zeros(n_classes, dictionary.n_latents, dtype=torch.float64)
    squares = torch.zeros(dictionary.n_latents, dtype=torch.float64)
    counts = torch.zeros(n_classes, dtype=torch.int64)
    device, origin = dictionary.atoms.device, torch.zeros(dictionary.n_latents)
    for batch in acts.batches(4096):
        codes = dictionary.encode(batch.x.to(device)).cpu().double()
        labels = batch.labels if values is None else values[batch.images]
        if not int(counts.sum()):
            origin = codes[0].clone()
        # About the first code, lest a large offset of a linear encoder cost the spread its digits.
        codes -= origin
        sums.index_add_(0, labels, codes)
        squares += codes.square().sum(0)
        counts += torch.bincount(labels, minlength=n_classes)
    means = sums / counts.clamp(min=1)[:, None]
    # Σ (z − m_c)² over all rows is Σ z² − Σ n_c m_c²; where nothing varies, rounding may leave less
    # than 0.
    within = (squares - (counts[:, None] * means.square()).sum(0)) / counts.sum().clamp(min=1)
    spreads = within.clamp(min=0).sqrt()
    means = torch.where(counts[:, None] > 0, means + origin, 0.0)
    scores = selection_scores(means, counts, spreads)
    classes = acts.classes if values is None else None if names is None else tuple(names)
    return Features(
        means, spreads, counts, classes, scores, acts.network_sha256, values is not None
    )  # fmt: skip


def _profile_of_several(dictionary: Dictionary, acts: Activations) -> Features:
    """Return the profile of each class against the images without it."""
    sums = torch.zeros(acts.n_classes, dictionary.n_latents, dtype=torch.float64)
    total, squares = torch.zeros(2, dictionary.n_latents, dtype=torch.float64)
    counts = torch.zeros(acts.n_classes, dtype=torch.int64)
    device, rows = dictionary.atoms.device, acts.n_rows
    origin = torch.zeros(dictionary.n_latents, dtype=torch.float64)
    for number, batch in enumerate(acts.batches(4096)):
        codes = dictionary.encode(batch.x.to(device)).cpu().double()
        if number == 0:
            origin = codes[0].clone()
        codes -= origin  # as in `profile`
        hot = batch.annotation.double()
        sums += hot.T @ codes
        total += codes.sum(0)
        squares += codes.square().sum(0)
        counts += batch.annotation.long().sum(0)
    with_, without = counts[:, None], (rows - counts)[:, None]
    means = torch.stack([(total - sums) / without.clamp(min=1), sums / with_.clamp(min=1)])
    scores = torch.zeros_like(sums)
    for label, n in enumerate(counts.tolist()):
        sides = torch.tensor([rows - n, n])
        # What the two sides' means account for; the rest of the squares is the spread within them.
        between = (sides[:, None] * means[:, label].square()).sum(0)
        spread = ((squares - between) / rows).clamp(min=0).sqrt()
        scores[label] = selection_scores(means[:, label], sides, spread)[1]
    spreads = (squares / rows - (total / rows).square()).clamp(min=0).sqrt()
    seen = torch.stack([without, with_]) > 0
    means = torch.where(seen, means + origin, 0.0)
    return Features(
        means[1], spreads, counts, acts.classes, scores, acts.network_sha256, without=means[0]
    )


def _attribute(attribute: Sequence[int] | Tensor, n_images: int) -> Int[Tensor, " images"]:
    try:
        values = torch.as_tensor(attribute).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"attribute is not numbers ({error}); expected an index from 0 for each of the "
            f"recording's {n_images} images, and the values' names as names="
        ) from error
    usable = values.shape == (n_images,)
    usable = usable and not (values.is_floating_point() or values.is_complex())
    # In int64: of unsigned numbers of more than 8 bits torch finds no least one.
    if not usable or int(values.long().min()) < 0:
        raise InputError(
            f"attribute is {values.dtype}{list(values.shape)}; expected an index from 0 for each "
            f"of the recording's {n_images} images"
        )
    return values.long()
