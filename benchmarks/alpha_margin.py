"""What the critical strength says beyond the margin: python benchmarks/alpha_margin.py.

Needs `pip install corrupt-tta==0.1.7` (the 15 corruptions of Hendrycks and Dietterich, 2019).

For each rightly labelled test image of the digits networks, trained here: its margin (the lead of
its logit), the critical strength at which the decision flips when its class's latent is suppressed
in all rows, and how much it takes to break the image otherwise: the share of corrupted versions
that are labelled wrongly (15 kinds at 3 severities), and the least step at which FGSM and PGD break
it. All are ranked within classes, since classes differ in all of them. Printed are rank
correlations with fragility, pooled over classes, and what is left of the critical strength's when
the margin is known: the partial correlation, with a bootstrap interval (images are drawn anew
within networks). Controls: the critical strength along a random direction, and a critical strength
that is shuffled within classes. `corr` with the margin says how much of it the margin is.
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import salve_plugin as salve
from salve_plugin.demo import digits
from salve_plugin.demo.digits import NetworkName
from salve_plugin.site import HEAD_INPUT

KINDS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
SEVERITIES = (1, 3, 5)
ATTACKS = {"FGSM": (0.4, 16, 1), "PGD": (0.08, 8, 5)}
"""Largest size of an attack, in units of the grey scale from 0 to 1; how many sizes are tried,
evenly spaced; and its iterations. PGD up to 0.4, too, broke every image at the smallest size."""

DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of the rightly labelled test images of one network.

    Attributes:
        labels: their classes.
        predictors: by name, larger for what should be harder to break.
        fragility: by name, larger for what is easier to break.
    """

    labels: Tensor
    predictors: dict[str, Tensor]
    fragility: dict[str, Tensor]


def main() -> None:
    """Measure each network for each seed and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"seeds 0 to {options.seeds - 1}, {options.threads} threads, torch {torch.__version__}, "
        f"NumPy {np.__version__}, Python {platform.python_version()}, "
        f"{platform.processor() or platform.machine()}"
    )
    splits = [digits.load_digits(seed) for seed in range(options.seeds)]
    corrupted = [corrupted_versions(test.images, seed) for seed, (_, test) in enumerate(splits)]
    names: tuple[NetworkName, ...] = ("resnet", "vit")
    for name in names:
        runs = []
        for seed, (train, test) in enumerate(splits):
            network = digits.train(name, train, seed=seed)
            print(f"{name}, seed {seed}: accuracy {digits.accuracy(network, test):.3f}", flush=True)
            runs.append(measured(network, train, test, corrupted[seed], seed))
        show(name, runs)


def measured(
    network: nn.Module,
    train: digits.Split,
    test: digits.Split,
    corrupted: dict[str, Tensor],
    seed: int,
) -> Measured:
    """Return all measurements of one network."""
    hooked = salve.attach(network)
    learned = salve.record(hooked, train.batches(), progress=False)
    dictionary = salve.fit(learned, "l1", seed=seed)
    acts = salve.record(hooked, test.batches(), progress=False)
    logits = logits_of(network, test.images)
    right = logits.argmax(1) == test.labels
    labels = test.labels[right]
    own = logits.gather(1, test.labels[:, None])
    margin = (own - logits.scatter(1, test.labels[:, None], -torch.inf)).amin(1)[right]
    codes = dictionary.encode(learned.tensor())
    alpha, random = torch.empty(2, len(test.labels), dtype=torch.float64).unbind()
    draw = torch.Generator().manual_seed(seed)
    for label in range(len(digits.CLASSES)):
        inside = learned.labels() == label
        shift = (codes[inside].mean(0) - codes[~inside].mean(0)) / codes.std(0).clamp(min=1e-6)
        # A latent's sign is arbitrary here: the gate takes its atom's absolute entries.
        edits = [
            salve.suppress(hooked, dictionary, latent=int(shift.abs().argmax()), strength=1.0),
            salve.edit_at(hooked, HEAD_INPUT, salve.Gate(unit(dictionary.width, draw), 1.0)),
        ]
        crits = salve.alpha_crits(hooked, edits, acts, target="flip", classes=[label])
        for values, crit in zip((alpha, random), crits, strict=True):
            values[test.labels == label] = crit.values
    never = float(alpha[right].isinf().double().mean())
    print(f"  no strength flips {never:.0%} of the rightly labelled images", flush=True)
    shuffled = alpha[right].clone()
    for label in sorted(set(labels.tolist())):
        at = (labels == label).nonzero()[:, 0]
        shuffled[at] = shuffled[at[torch.randperm(len(at), generator=draw)]]
    wrong = {
        kind: torch.stack(
            [logits_of(network, images).argmax(1) != test.labels for images in versions]
        ).double().mean(0)[right]
        for kind, versions in corrupted.items()
    }  # fmt: skip
    fragility = {"corruptions": sum(wrong[k] * len(KINDS[k]) for k in KINDS) / 15} | wrong
    images = test.images[right]
    for attack, (largest, sizes, iterations) in ATTACKS.items():
        fragility[attack] = -least_step(network, images, labels, largest, sizes, iterations)
    predictors = {"margin": margin, "alpha": alpha[right], "random": random[right]}
    return Measured(labels, predictors | {"shuffled": shuffled}, fragility)  # type: ignore[arg-type] # the sum is a tensor


def unit(width: int, draw: torch.Generator) -> Tensor:
    """Return a random unit direction, (1, width)."""
    return functional.normalize(torch.randn(1, width, generator=draw), dim=1)


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits in float64."""
    return torch.cat([network(batch) for batch in torch.split(images, 256)]).double()


def corrupted_versions(images: Tensor, seed: int) -> dict[str, Tensor]:
    """Return by group of kinds the corrupted images, (kinds x severities, images, 1, 32, 32)."""
    from corrupt_tta import corrupt

    grey = ((images * digits.STD + digits.MEAN).clamp(0, 1) * 255).round().byte()
    pictures = grey.movedim(1, -1).expand(-1, -1, -1, 3).numpy()
    np.random.seed(seed)  # that is the generator the package draws from
    return {
        group: torch.stack(
            [
                as_inputs([corrupt(picture, severity, kind) for picture in pictures])
                for kind in kinds
                for severity in SEVERITIES
            ]
        )
        for group, kinds in KINDS.items()
    }


def as_inputs(pictures: Sequence[np.ndarray]) -> Tensor:
    """Return pictures in 0..255 as the network's grey inputs."""
    grey = torch.from_numpy(np.stack(pictures).astype(np.float32)).mean(-1)[:, None] / 255
    return (grey.clamp(0, 1) - digits.MEAN) / digits.STD


def least_step(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    largest: float,
    sizes: int,
    iterations: int,
) -> Tensor:
    """Return for each image the least size of an attack that breaks it; just above all if none."""
    least = torch.full((len(images),), largest * (1 + 1 / sizes), dtype=torch.float64)
    floor, ceiling = -digits.MEAN / digits.STD, (1 - digits.MEAN) / digits.STD
    for number in range(sizes, 0, -1):
        size = largest * number / sizes / digits.STD
        moved = images
        for _ in range(iterations):
            gradient = loss_gradient(network, moved, labels)
            # PGD as Madry et al. (2018): steps of a quarter, projected onto the cube.
            step = size if iterations == 1 else size / 4
            moved = moved + step * gradient.sign()
            moved = (images + (moved - images).clamp(-size, size)).clamp(floor, ceiling)
        broken = logits_of(network, moved).argmax(1) != labels
        least[broken] = largest * number / sizes
    return least


def loss_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the loss to the images."""
    leaf = images.detach().clone().requires_grad_()
    loss = functional.cross_entropy(network(leaf), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def show(name: str, runs: Sequence[Measured]) -> None:
    """Print one network's table."""
    ranked = {
        what: torch.cat([ranks(run.predictors[what], run.labels) for run in runs])
        for what in runs[0].predictors
    }
    images = len(ranked["margin"])
    print(
        f"\n{name}: {images} images; correlation of alpha with the margin "
        f"{correlation(ranked['alpha'], ranked['margin']):.2f}, of random "
        f"{correlation(ranked['random'], ranked['margin']):.2f}"
    )
    print(
        f"{'fragility to':14}{'margin':>8}{'alpha':>8}{'random':>8}"
        f"{'alpha | margin':>24}{'random | margin':>24}{'shuffled | margin':>24}"
    )
    draw = torch.Generator().manual_seed(0)
    # Images are drawn anew; the ranks within their classes stay.
    drawn = torch.randint(0, images, (DRAWS, images), generator=draw)
    for what in runs[0].fragility:
        broken = torch.cat([ranks(run.fragility[what], run.labels) for run in runs])
        plain = [correlation(ranked[each], broken) for each in ("margin", "alpha", "random")]
        cells = [
            interval(partial, ranked[each], broken, ranked["margin"], drawn)
            for each in ("alpha", "random", "shuffled")
        ]
        print(
            f"{what:14}" + "".join(f"{value:8.2f}" for value in plain)
            + "".join(f"{cell:>24}" for cell in cells)
        )  # fmt: skip


def ranks(values: Tensor, labels: Tensor) -> Tensor:
    """Return mid-ranks within classes, centred and scaled to unit spread in each class."""
    result = torch.zeros(len(values), dtype=torch.float64)
    for label in sorted(set(labels.tolist())):
        at = labels == label
        own = values[at]
        below = (own[:, None] > own).sum(1) + (own[:, None] == own).sum(1) / 2
        centred = below.double() - below.double().mean()
        result[at] = centred / centred.std().clamp(min=1e-9)
    return result


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return the correlation along the last axis."""
    first, second = (each - each.mean(-1, keepdim=True) for each in (one, other))
    sizes = torch.linalg.vector_norm(first, dim=-1) * torch.linalg.vector_norm(second, dim=-1)
    result: Tensor = (first * second).sum(-1) / sizes.clamp(min=1e-12)
    return result


def partial(one: Tensor, other: Tensor, known: Tensor) -> Tensor:
    """Return the correlation of two that is left when a third is known."""
    first, second = correlation(one, known), correlation(other, known)
    rest = ((1 - first**2) * (1 - second**2)).sqrt()
    return (correlation(one, other) - first * second) / rest


def interval(
    statistic: Callable[..., Tensor], one: Tensor, other: Tensor, known: Tensor, drawn: Tensor
) -> str:
    """Return a statistic with its 95 % bootstrap interval."""
    value = float(statistic(one, other, known))
    several = torch.cat(
        [statistic(one[part], other[part], known[part]) for part in torch.split(drawn, 200)]
    )
    low, high = several.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
