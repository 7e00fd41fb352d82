"""Do learners find the atoms that the rows were made of, and not only reconstruct the rows?

Rows are sums of a few known atoms plus noise, after SynthSAEBench (Chanin & Garriga-Alonso 2026,
arXiv 2602.14687): atoms fire by a Gaussian copula. Five worlds: `flat` (all atoms equally often and
independently), `zipf` (rank r fires in proportion to r^-1/2 or, with --exponent, another power),
`correlated` (low-rank covariance of the copula), `hierarchical` (three quarters of the atoms are
children, which fire only with their parent and never beside a sibling), and `all` of it together.

Every learner has as many latents as there are atoms and, where it can be told, as many active ones
as the rows have (`k`, or `target_l0`). Per world: the share of atoms that have a latent of cosine
above 0.9. In `all`, also the matched cosine (mean over atoms of the nearest latent's cosine),
held-out R², L0, dead share, stability over seeds 0 and 1 and processor seconds of one fit, range
test included. `default` is the share found in `all` with the learner's own options and as many
latents as it takes by itself.

Controls: random atoms, principal axes and k-means of validate/baselines.py; the true atoms
themselves, coded by matching pursuit; and scikit-learn's dictionary learning, which we did not
write.

    python benchmarks/truth_recovery.py            # all learners
    python benchmarks/truth_recovery.py --quick    # a fifth of the rows and steps: does it run?
    python benchmarks/truth_recovery.py --latents 0.5 --learners mp topk  # fewer latents than atoms
    python benchmarks/truth_recovery.py --learners gated --l1 0.1 0.4  # a penalty, no target L0
"""

import argparse
import math
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import salve_plugin as salve
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS, create
from salve_plugin.discover.training.measures import quality_of
from salve_plugin.discover.training.rows import Moments, RowReader
from salve_plugin.site import Site
from salve_plugin.validate.baselines import (
    kmeans_dictionary,
    pca_dictionary,
    random_dictionary,
)
from salve_plugin.validate.stability import SAME, stability

WORLDS = ("flat", "zipf", "correlated", "hierarchical", "all")
SIGNED_CODES = {"l1", "abs_topk", "itda", "variational"}
"""Learners whose codes have both signs: an atom and its negative are the same to them."""

CHILDREN = 3
"""Of each parent, in a hierarchy."""

CHILD_SHARE = 0.25
"""How often a child fires when its parent does, before siblings exclude each other."""

RANK = 4
"""Of the covariance by which atoms fire together."""

NOISE = 0.02
"""Standard deviation of the noise of each feature; an atom in a row has a size of about 1."""


@dataclass(frozen=True, eq=False)
class Planted:
    """Rows whose atoms are known.

    Attributes:
        rows: (rows, width).
        truth: unit atoms (atoms, width).
        l0: atoms in a row, on average.
    """

    rows: Tensor
    truth: Tensor
    l0: float


@dataclass(frozen=True)
class Size:
    """How large a world is.

    Attributes:
        width: features of a row.
        atoms: known atoms.
        rows: rows.
        l0: atoms in a row that are asked for; a hierarchy has fewer.
        exponent: of the Zipf law.
    """

    width: int
    atoms: int
    rows: int
    l0: float
    exponent: float


def planted(world: str, size: Size, seed: int) -> Planted:
    """Draw a world's atoms and rows."""
    random = torch.Generator().manual_seed(seed)
    truth = functional.normalize(torch.randn(size.atoms, size.width, generator=random), dim=1)
    rates = torch.arange(1, size.atoms + 1) ** (-size.exponent * (world in ("zipf", "all")))
    levels = copula(size, random, RANK if world in ("correlated", "all") else 0)
    if world in ("hierarchical", "all"):
        on = nested(levels, rates, size.l0)
    else:
        on = levels < fitted(rates, size.l0)
    sizes = (1 + 0.25 * torch.randn(levels.shape, generator=random)).clamp(min=0.2)
    rows = (on * sizes) @ truth + NOISE * torch.randn(size.rows, size.width, generator=random)
    return Planted(rows, truth, float(on.sum(1).float().mean()))


def copula(size: Size, random: torch.Generator, rank: int) -> Tensor:
    """Return a uniform level in [0, 1] for each row and atom; correlated if the rank is above 0."""
    levels = torch.randn(size.rows, size.atoms, generator=random)
    if rank:
        factors = torch.randn(size.atoms, rank, generator=random)
        # Half of each level's variance is shared, whatever the rank, so that each stays standard.
        factors = functional.normalize(factors, dim=1) * math.sqrt(0.5)
        shared = torch.randn(size.rows, rank, generator=random) @ factors.T
        levels = shared + math.sqrt(0.5) * levels
    return 0.5 * (1 + torch.erf(levels / math.sqrt(2)))


def fitted(rates: Tensor, l0: float) -> Tensor:
    """Return probabilities in proportion to rates, at most a half, that add up to about l0."""
    return (l0 * rates / rates.sum()).clamp(max=0.5)


def nested(levels: Tensor, rates: Tensor, l0: float) -> Tensor:
    """Return which atoms fire where children need their parent and exclude each other.

    The first atoms are the parents; each has the next CHILDREN of the rest.
    """
    n_parents = levels.shape[1] // (1 + CHILDREN)
    with_children = 1 + CHILDREN * CHILD_SHARE
    parents = levels[:, :n_parents] < fitted(rates[:n_parents], l0 / with_children)
    children = levels[:, n_parents:].view(-1, n_parents, CHILDREN)
    fires = (children < CHILD_SHARE) & (children == children.amin(2, keepdim=True))
    return torch.cat([parents, (fires & parents[:, :, None]).flatten(1)], dim=1)


def cosines(truth: Tensor, atoms: Tensor, *, signed: bool) -> Tensor:
    """Return for each true atom the cosine of the nearest latent's."""
    similar = truth @ functional.normalize(atoms, dim=1).T
    return (similar if signed else similar.abs()).max(1).values


def found(truth: Tensor, atoms: Tensor, *, signed: bool) -> float:
    """Return the share of the true atoms that a latent has."""
    return float((cosines(truth, atoms, signed=signed) > SAME).double().mean())


def arguments(name: str, target: float, l1: float | None) -> dict[str, Any]:
    """Return what tells a learner how many latents of a row are to be active."""
    learner = LEARNERS[name]
    options: dict[str, Any] = {}
    if l1 is not None:
        options["l1"] = l1
    elif "k" in {field.name for field in fields(learner)}:
        options["k"] = max(1, round(target))
    elif learner.l0_control:
        options["target_l0"] = target
    return options


def no_model(name: str) -> dict[str, Any]:
    """Return what a learner needs because no model's loss depends on the rows: g-SAE is TopK."""
    return {"beta": 0.0} if name == "gradient_topk" else {}


def peer(rows: Tensor, n_latents: int, k: int, seed: int) -> Dictionary:
    """Return what scikit-learn's online dictionary learning finds, coded by matching pursuit."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    learner = MiniBatchDictionaryLearning(
        n_latents, alpha=0.2, batch_size=256, max_iter=4, random_state=seed, positive_code=True,
        fit_algorithm="cd",
    )  # fmt: skip
    centred = rows - rows.mean(0)
    learner.fit(centred.numpy())
    atoms = functional.normalize(torch.from_numpy(learner.components_).float(), dim=1)
    return pursued(atoms, rows, k)


def pursued(atoms: Tensor, rows: Tensor, k: int) -> Dictionary:
    """Return the matching-pursuit dictionary of given atoms."""
    mean = rows.mean(0)
    tensors = {
        "atoms": atoms, "encoder_weight": atoms, "encoder_bias": -(atoms @ mean),
        "decoder_bias": mean,
    }  # fmt: skip
    return Dictionary(tensors, create("mp", {"k": k}), site_of(rows))


def site_of(rows: Tensor) -> Site:
    """Return a site for rows in memory."""
    return Site("rows", "", "out", "pooled", rows.shape[1])


@dataclass(frozen=True)
class Row:
    """One line of the table; None is what does not exist or was not asked for.

    Attributes:
        found: share of true atoms found, by world.
        default: the same in `all` with the learner's own options.
        mmcs: mean over true atoms of the nearest latent's cosine, in `all`.
        r2: held out, in `all`.
        l0: active latents of a row.
        dead: share of latents that no training row activates.
        stable: matched cosine of two seeds.
        seconds: processor seconds of a fit.
    """

    found: dict[str, float]
    default: float | None
    mmcs: float
    r2: float
    l0: float
    dead: float
    stable: float | None
    seconds: float


Make = Callable[[Planted, int], Dictionary]
"""From a world and a seed to a dictionary."""


def measured(
    make: Make, worlds: dict[str, Planted], *, signed: bool, own: Make | None = None
) -> Row:
    """Measure one way to get a dictionary in all worlds."""
    shares, seconds, last = {}, 0.0, next(reversed(worlds))
    for name, world in worlds.items():
        before = process_time()
        dictionary = make(world, 0)
        seconds = process_time() - before
        shares[name] = found(world.truth, dictionary.atoms, signed=signed)
    world = worlds[last]
    data = RowReader(world.rows, None)
    quality: dict[str, Any] = quality_of(dictionary, data, Moments.of(data).scale)
    other = make(world, 1)
    same_shape = other.atoms.shape == dictionary.atoms.shape
    default = None if own is None else found(world.truth, own(world, 0).atoms, signed=signed)
    return Row(
        shares,
        default,
        float(cosines(world.truth, dictionary.atoms, signed=signed).mean()),
        quality["held_out_r2"],
        quality["l0"],
        quality["dead_share"],
        stability(dictionary.atoms, [other.atoms], signed=signed).cosine if same_shape else None,
        seconds,
    )


def rows_of_table(
    args: argparse.Namespace, worlds: dict[str, Planted]
) -> Sequence[tuple[str, Callable[[], Row]]]:
    """Return name and measurement of each line: learners, then the peer and the controls."""
    n_latents = round(args.latents * args.atoms)

    def learner(name: str, l1: float | None) -> Row:
        def fitted_to(world: Planted, seed: int) -> Dictionary:
            return salve.fit(
                world.rows, name, n_latents=n_latents, seed=seed, steps=args.steps,
                **arguments(name, world.l0, l1), **no_model(name),
            )  # fmt: skip

        def own(world: Planted, seed: int) -> Dictionary:
            return salve.fit(world.rows, name, seed=seed, steps=args.steps, **no_model(name))

        signed = name not in SIGNED_CODES
        return measured(fitted_to, worlds, signed=signed, own=own if l1 is None else None)

    def k(world: Planted) -> int:
        return max(1, round(world.l0))

    controls: dict[str, Make] = {
        "scikit-learn": lambda world, seed: peer(world.rows, n_latents, k(world), seed),
        "true atoms, pursued": lambda world, _: pursued(world.truth, world.rows, k(world)),
        "random atoms": lambda world, seed: random_dictionary(
            world.rows, site_of(world.rows), n_latents, k(world), seed
        ),
        "k-means": lambda world, seed: kmeans_dictionary(
            world.rows.roll(seed * n_latents, 0), site_of(world.rows), n_latents, k(world), seed
        ),
        "principal axes": lambda world, _: pca_dictionary(
            world.rows, site_of(world.rows), n_latents, k(world)
        ),
    }

    def control(name: str) -> Row:
        return measured(controls[name], worlds, signed=name != "principal axes")

    lines: list[tuple[str, Callable[[], Row]]] = []
    for l1 in args.l1:
        title = "" if l1 is None else f", l1={l1:g}"
        lines += [(name + title, partial(learner, name, l1)) for name in args.learners]
    lines += [(name, partial(control, name)) for name in controls]
    return lines


def line(name: str, row: Row) -> str:
    """Return one line of the table."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    cells = [f"{share:.2f}" for share in row.found.values()]
    cells += [number(row.default, ".2f"), number(row.mmcs, ".3f"), number(row.r2, ".3f")]
    cells += [number(row.l0, ".1f"), number(row.dead, ".2f"), number(row.stable, ".2f")]
    return f"| {name} | " + " | ".join([*cells, f"{row.seconds:.1f}"]) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--learners", nargs="+", default=sorted(LEARNERS))
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--atoms", type=int, default=64)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--l0", type=float, default=3.0)
    parser.add_argument("--exponent", type=float, default=0.5, help="of the Zipf law")
    parser.add_argument("--latents", type=float, default=1.0, help="for each atom")
    parser.add_argument(
        "--l1", type=float, nargs="+", default=[None], help="penalties, instead of a target L0"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the worlds")
    parser.add_argument("--quick", action="store_true", help="a fifth of the rows and steps")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.steps = args.rows // 5, args.steps // 5
    torch.set_num_threads(1)
    # Dead latents and missed targets are columns of the table.
    warnings.simplefilter("ignore", UserWarning)
    size = Size(args.width, args.atoms, args.rows, args.l0, args.exponent)
    worlds = {name: planted(name, size, args.seed) for name in WORLDS}
    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch "
        f"{torch.__version__}, 1 thread, {args.steps} steps, {args.rows} rows x {args.width}, "
        f"{args.atoms} atoms, {args.latents:g} latents for each; seed of the worlds {args.seed}, "
        "of fits 0 and 1\natoms in a row: "
        + ", ".join(f"{name} {world.l0:.2f}" for name, world in worlds.items())
        + "\n"
    )
    titles = [*WORLDS, "default", "MMCS", "R²", "L0", "dead", "stable", "s"]
    print("| | " + " | ".join(titles) + " |\n|---|" + "---:|" * len(titles))
    for name, measure in rows_of_table(args, worlds):
        print(line(name, measure()), flush=True)


if __name__ == "__main__":
    main()
