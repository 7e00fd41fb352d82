"""A shortcut of ImageNet networks, removed: Chinese characters on a photograph read as "carton".

Li et al., "A Whac-A-Mole Dilemma" (arXiv 2212.04825), found it. Here it is measured in
EfficientNet-Lite0 (`tf_efficientnet_lite0` with its published ImageNet weights) on crops of the
colour photographs that scikit-image and scikit-learn ship, and taken out by permanent edits. What
an edit is judged on was not seen when it was made: neither the photograph (each is left out in
turn) nor the phrase (it is fitted on three, judged on the other three). All numbers are from
forward passes of the edited network.

    python benchmarks/watermark.py            # all methods, leaving out one photograph at a time
    python benchmarks/watermark.py --quick    # three at a time, fewer overlays and methods

Columns, mean and 95 % interval (bootstrap over photographs):

- rise: of carton's logit, marked minus clean, in the edited network;
- kept: share of clean crops whose first class is what it was before the edit;
- decided: the same, of crops whose two first classes were .1 or more apart before the edit (a
  column added after the first results: half of the lost crops had been closer than that);
- agree: share of marked crops whose first class is that of the clean crop before the edit;
- Latin, thin, digits: agreement under those overlays;
- others: as kept, on held-out pictures of other kinds (grey textures, microscope pictures, text).
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor

from salve_plugin import HookedModel, LowRankMap, LowRankUpdate, attach, edit_at
from salve_plugin.control.edit import Edit
from salve_plugin.control.erasers.ablation import directional_ablation
from salve_plugin.control.erasers.joint_moments import JointMoments
from salve_plugin.control.erasers.oblique import leace
from salve_plugin.control.erasers.repair import PairMoments, repair
from salve_plugin.demo import pretrained

# The folder of a script is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.watermark_pictures import COLOUR, OTHERS, Pictures, batches, logits, marked, same

PHRASES = tuple(f"cjk_{index}" for index in range(6))
SPLITS = (((0, 1, 2), (3, 4, 5)), ((3, 4, 5), (0, 1, 2)), ((0, 2, 4), (1, 3, 5)))
"""Phrases to fit on and to judge on, taken in turn by the folds of photographs."""

HEAD, LAST, BEFORE = "unembed.hook_in", "blocks.6.hook_resid_post", "blocks.5.hook_resid_post"
SITES = (HEAD, LAST, BEFORE)

Maps = Sequence[tuple[str, LowRankMap | LowRankUpdate]]
"""Sites and what is done to them."""


Recorded = Mapping[str, Mapping[str, Tensor]]
"""By overlay ("clean" is none) and site: (crops, width) or (crops, width, height, width)."""


@torch.no_grad()
def recorded(hooked: HookedModel, images: Tensor, overlays: Sequence[str]) -> Recorded:
    """Return what the sites carry for the images with each overlay."""
    result: dict[str, dict[str, Tensor]] = {}
    for overlay in ("clean", *overlays):
        shown = images if overlay == "clean" else marked(images, overlay)
        caches = [
            hooked.run_with_cache(2 * part - 1, names_filter=list(SITES))[1]
            for part in batches(shown)
        ]
        result[overlay] = {site: torch.cat([cache[site] for cache in caches]) for site in SITES}
    return result


def rows(activation: Tensor) -> Tensor:
    """Return (rows, width): every position of a map is a row."""
    return activation if activation.ndim == 2 else activation.movedim(1, -1).flatten(0, 2)


@dataclass(frozen=True)
class Blends:
    """Means of two crops each: pictures of more kinds, without new ones.

    Attributes:
        recorded: of the means, with overlays and without.
        crops: which two crops each is the mean of, (blends, 2).
    """

    recorded: Recorded
    crops: Tensor

    @classmethod
    def of(cls, hooked: HookedModel, images: Tensor, draws: int) -> "Blends":
        """Blend every crop with as many others as there are draws."""
        own = torch.arange(len(images))
        crops = torch.cat(
            [
                torch.stack((own, torch.randperm(len(images), generator=generator)), 1)
                for generator in (torch.Generator().manual_seed(seed) for seed in range(draws))
            ]
        )
        return cls(recorded(hooked, images[crops].mean(1), PHRASES), crops)


@dataclass(frozen=True)
class Evidence:
    """What an edit may be fitted on: recorded crops, which of them, and with which phrases."""

    recorded: Recorded
    chosen: Tensor
    phrases: Sequence[str]
    blends: Blends | None = None

    def pairs(self, site: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows with a phrase and the same rows without one."""
        parts = [(self.recorded, self.chosen)]
        if self.blends is not None:
            # A blend shows both its crops: neither may be held out.
            parts.append((self.blends.recorded, self.chosen[self.blends.crops].all(1)))
        for recorded_, chosen in parts:
            without = rows(recorded_["clean"][site][chosen])
            for phrase in self.phrases:
                yield rows(recorded_[phrase][site][chosen]), without

    def labelled(self, site: str) -> JointMoments:
        """Return the moments of rows and of whether they are of a marked crop."""
        return JointMoments.of(
            (x, torch.full((len(x), 1), label))
            for pair in self.pairs(site)
            for x, label in zip(pair, (1.0, 0.0), strict=True)
        )


Method = Callable[[Evidence], Maps]


def no_edit(evidence: Evidence) -> Maps:
    """Return nothing to do."""
    return ()


def mean_difference(*sites: str) -> Method:
    """Project the difference of means out, about the mean where the layers can take an offset."""

    def fitted(evidence: Evidence) -> Maps:
        return [
            (
                site,
                directional_ablation(
                    evidence.labelled(site), centre="origin" if site == BEFORE else "mean"
                ),
            )
            for site in sites
        ]

    return fitted


def our_leace(site: str) -> Method:
    """LEACE with the covariance shrunk as far as estimated (OAS)."""
    return lambda evidence: [(site, leace(evidence.labelled(site)))]


def their_leace(site: str) -> Method:
    """LEACE by the package concept-erasure, whose covariance is shrunk by its own estimate."""

    def fitted(evidence: Evidence) -> Maps:
        from concept_erasure import LeaceFitter

        (width,) = {x.shape[1] for x, _ in evidence.pairs(site)}
        fitter = LeaceFitter(width, 1, dtype=torch.float64)
        for with_, without in evidence.pairs(site):
            for x, label in ((with_, 1.0), (without, 0.0)):
                fitter.update(x.double(), torch.full((len(x), 1), label, dtype=torch.float64))
        eraser = fitter.eraser
        read = eraser.proj_right.T
        return [(site, LowRankMap(eraser.proj_left, read, read.T @ eraser.bias))]

    return fitted


def random_direction(site: str) -> Method:
    """Project a random direction out: what any rank-one edit does."""

    def fitted(evidence: Evidence) -> Maps:
        x = rows(evidence.recorded["clean"][site][evidence.chosen]).double()
        draw = torch.randn(x.shape[1], 1, generator=torch.Generator().manual_seed(0)).double()
        direction = draw / draw.norm()
        return [(site, LowRankMap(direction, direction, direction.T @ x.mean(0)))]

    return fitted


def moments(evidence: Evidence, site: str) -> PairMoments:
    """Return the moments of pairs; about zero where the layers that read a site have no bias."""
    pairs = evidence.pairs(site)
    if site != BEFORE:
        return PairMoments.of(pairs)
    # With each pair its negative: the mean is zero, and so is the map's offset.
    return PairMoments.of((sign * m, sign * c) for m, c in pairs for sign in (1, -1))


def repaired(site: str, rank: int) -> Method:
    """Bring marked activations back to what they were without the mark."""
    return lambda evidence: [(site, repair(moments(evidence, site), rank=rank))]


def fitted_edits(hooked: HookedModel, maps: Maps) -> list[Edit]:
    """Return the permanent edits, measured against hooks where they are hidden."""
    return [
        edit_at(hooked, site, change, role="writer" if site == LAST else "reader")
        for site, change in maps
    ]


def repaired_in_turn(hooked: HookedModel, first: int, second: int) -> Method:
    """Repair at blocks.5, and at blocks.6 what that leaves."""

    def fitted(evidence: Evidence) -> Maps:
        change = repair(moments(evidence, BEFORE), rank=first)

        @torch.no_grad()
        def after(overlay: str) -> Tensor:
            x = change.activation(evidence.recorded[overlay][BEFORE][evidence.chosen], 1)
            return rows(hooked.model.get_submodule("blocks.6")(x))

        without = rows(evidence.recorded["clean"][LAST][evidence.chosen])
        # Clean pictures too: what the first repair did to them is to be undone as well.
        shown = ("clean", *evidence.phrases)
        left = PairMoments.of((after(overlay), without) for overlay in shown)
        return [(BEFORE, change), (LAST, repair(left, rank=second))]

    return fitted


def of_colour(method: Method, photograph: Tensor) -> Method:
    """Fit on crops of colour photographs alone."""

    def fitted(evidence: Evidence) -> Maps:
        chosen = evidence.chosen & (photograph < len(COLOUR))
        return method(Evidence(evidence.recorded, chosen, evidence.phrases))

    return fitted


def blended(method: Method, blends: Blends) -> Method:
    """Fit on blends of the crops, too."""
    return lambda evidence: method(replace(evidence, blends=blends))


GRID = tuple((site, rank) for site in (LAST, BEFORE) for rank in (1, 2, 3))
LARGEST_RISE, LEAST_KEPT = 0.3, 0.98


def chosen_inside(hooked: HookedModel, photograph: Tensor, carton: int) -> Method:
    """Repair at the site and rank that judge best on photographs and phrases held out once more.

    Only what may be fitted on is looked at: its colour photographs are dealt to four parts, each of
    which is judged with the last of the phrases by repairs fitted on the rest and the other two.
    The best has the largest agreement of those within `LARGEST_RISE` and `LEAST_KEPT`; if none is,
    it is the one that keeps most.
    """

    def fitted(evidence: Evidence) -> Maps:
        *fit, held_out = evidence.phrases
        mine = photograph[evidence.chosen]
        inside = sorted(set(mine[mine < len(COLOUR)].tolist()))
        parts = [torch.tensor(inside[start::4]) for start in range(4)]
        scores: dict[tuple[str, int], list[tuple[float, float, float]]] = {c: [] for c in GRID}
        for part in parts:
            judged = evidence.chosen & torch.isin(photograph, part)
            rest = Evidence(evidence.recorded, evidence.chosen & ~judged, fit)
            for site in (LAST, BEFORE):
                clean, marked_ = (
                    evidence.recorded[overlay][site][judged] for overlay in ("clean", held_out)
                )
                before, statistics = rest_of(hooked, site, clean), moments(rest, site)
                for rank in sorted(rank for other, rank in GRID if other == site):
                    change = repair(statistics, rank=rank)
                    after, raised = (
                        rest_of(hooked, site, change.activation(x, 1)) for x in (clean, marked_)
                    )
                    scores[site, rank].append(
                        (
                            float((raised - after)[:, carton].mean()),
                            same(after, before),
                            same(raised, before),
                        )
                    )
        means = {c: tuple(np.mean(values, axis=0)) for c, values in scores.items()}
        good = [
            c for c, (rise, kept, _) in means.items() if rise <= LARGEST_RISE and kept >= LEAST_KEPT
        ]
        if good:
            site, rank = max(good, key=lambda c: means[c][2])
        else:
            site, rank = max(means, key=lambda c: (means[c][1], means[c][2]))
        CHOSEN.append(f"{site} rank {rank}")
        return repaired(site, rank)(evidence)

    return fitted


CHOSEN: list[str] = []
"""What the inner folds chose, one a fold."""


@torch.no_grad()
def rest_of(hooked: HookedModel, site: str, activation: Tensor) -> Tensor:
    """Return the logits from a site on, for choosing; what is reported is of the edited network."""
    network = hooked.model
    if site == BEFORE:
        activation = network.get_submodule("blocks.6")(activation)
    x = network.get_submodule("bn2")(network.get_submodule("conv_head")(activation))
    result: Tensor = network.get_submodule("classifier")(x.mean((2, 3)))
    return result


OVERLAID = {"Latin": "latin_0", "thin": "thin_0", "digits": "digits_0"}
DECIDED = 0.1
MEASURES = ("rise", "kept", "decided", "agree", *OVERLAID, "others")


@dataclass
class Table:
    """Measures of one method, one value a photograph."""

    values: dict[str, list[float]]

    @classmethod
    def empty(cls) -> "Table":
        """Return a table to fill."""
        return cls({name: [] for name in MEASURES})

    def cell(self, name: str) -> str:
        """Return the mean and its 95 % interval over resampled photographs."""
        values = np.array(self.values[name])
        if not len(values):
            return ""
        draws = np.random.default_rng(0).integers(len(values), size=(4000, len(values)))
        low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
        digits = 2 if name == "rise" else 3
        mean = float(values.mean())
        return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def judge(
    table: Table, hooked: HookedModel, edits: Sequence[Edit], pictures: Pictures,
    base: Tensor, held_out: Tensor, phrases: Sequence[str], carton: int, overlays: Sequence[str],
) -> None:  # fmt: skip
    """Add what the edited network does to the held-out crops, photograph by photograph."""
    with ExitStack() as applied:
        for edit in edits:
            applied.enter_context(edit.applied(hooked))
        for photograph in sorted(set(pictures.photograph[held_out].tolist())):
            mine = pictures.photograph == photograph
            images, before = pictures.images[mine], base[mine]
            clean = logits(hooked, images)
            if photograph >= len(COLOUR):
                table.values["others"].append(same(clean, before))
                continue
            table.values["kept"].append(same(clean, before))
            first, second = before.topk(2).values.T
            table.values["decided"].append(
                same(clean[first - second >= DECIDED], before[first - second >= DECIDED])
            )
            with_phrases = [logits(hooked, marked(images, phrase)) for phrase in phrases]
            rises = [float((after - clean)[:, carton].mean()) for after in with_phrases]
            table.values["rise"].append(float(np.mean(rises)))
            agreements = [same(after, before) for after in with_phrases]
            table.values["agree"].append(float(np.mean(agreements)))
            for name in overlays:
                after = logits(hooked, marked(images, OVERLAID[name]))
                table.values[name].append(same(after, before))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer folds, overlays and methods")
    parser.add_argument("--only", default="", help="methods with this in their name")
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)
    start = time.perf_counter()
    carton = pretrained.class_names().index("carton")
    # Twice as fast on a CPU as the default layout.
    hooked = attach(pretrained.load_network().to(memory_format=torch.channels_last))
    pictures = Pictures.packaged()
    record = recorded(hooked, pictures.images, PHRASES)
    base = logits(hooked, pictures.images)
    lowered = torch.zeros(base.shape[1])
    lowered[carton] = -10.0
    bias_only = LowRankUpdate(torch.zeros(len(lowered), 0), torch.zeros(1280, 0), lowered)
    methods: dict[str, Method] = {
        "no edit": no_edit,
        "carton's bias lowered by 10": lambda evidence: [(HEAD, bias_only)],
        "random direction, blocks.6": random_direction(LAST),
        "difference of means, head": mean_difference(HEAD),
        "difference of means, blocks.6": mean_difference(LAST),
        "difference of means, blocks.5 and 6": mean_difference(BEFORE, LAST),
        "LEACE, head": our_leace(HEAD),
        "LEACE, blocks.6": our_leace(LAST),
        "LEACE (concept-erasure), blocks.6": their_leace(LAST),
        "paired repair, rank 1, blocks.6": repaired(LAST, 1),
        "paired repair, rank 2, blocks.6": repaired(LAST, 2),
        "paired repair, rank 1, blocks.5": repaired(BEFORE, 1),
        "paired repair, rank 2, blocks.5": repaired(BEFORE, 2),
        "paired repair, rank 3, blocks.5": repaired(BEFORE, 3),
        "paired repair, rank 2, blocks.5 and 6 in turn": repaired_in_turn(hooked, 2, 2),
        "paired repair, site and rank by inner folds": chosen_inside(
            hooked, pictures.photograph, carton
        ),
    }
    for name in (
        "difference of means, blocks.6",
        "LEACE, blocks.6",
        "paired repair, rank 2, blocks.6",
    ):
        methods[f"{name}, of colour photographs alone"] = of_colour(
            methods[name], pictures.photograph
        )
    blends = Blends.of(hooked, pictures.images, 2) if not quick else None
    for name in ("rank 1, blocks.6", "rank 2, blocks.6", "rank 3, blocks.5"):
        if blends is not None:
            name = f"paired repair, {name}"
            methods[f"{name}, blends too"] = blended(methods[name], blends)
    methods = {name: method for name, method in methods.items() if arguments.only in name}
    folds = len(COLOUR)
    if quick:
        folds = 3
        kept = ("no edit", "difference of means, blocks.6", "paired repair, rank 2, blocks.6")
        methods = {name: method for name, method in methods.items() if name in kept}
    overlays = ["Latin"] if quick else list(OVERLAID)
    print(
        f"{platform.machine()}, torch {torch.__version__}, timm {timm.__version__}, one thread, "
        f"seed 0; {int(pictures.colour.sum())} crops of {len(COLOUR)} colour photographs, "
        f"{int((~pictures.colour).sum())} of {len(OTHERS)} others; {folds} folds"
    )
    print(f"| edit | {' | '.join(MEASURES)} |")
    print("|---|" + "---|" * len(MEASURES))
    for name, method in methods.items():
        table = Table.empty()
        for fold in range(folds):
            held_out = pictures.photograph % len(COLOUR) % folds == fold
            fit, test = ([PHRASES[index] for index in part] for part in SPLITS[fold % 3])
            edits = fitted_edits(hooked, method(Evidence(record, ~held_out, fit)))
            judge(
                table, hooked, edits, pictures, base, held_out, test[:1] if quick else test,
                carton, overlays,
            )  # fmt: skip
        print(f"| {name} | {' | '.join(table.cell(measure) for measure in MEASURES)} |", flush=True)
    for number, choice in enumerate(CHOSEN):
        print(f"fold {number}: {choice}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
