"""What a network still knows of a class after it was suppressed or erased, and what that cost.

The digits ViT of the demo; every edit is fitted on the 1437 training digits and judged on the 360
test digits, once for each of the ten classes. Beside the features' edit stand a plain bias
(`mask`), LEACE folded into the classifier (concept-erasure, not ours), and the difference of means,
of class token and patches, projected out of hidden branches. Printed are means over the classes:
the target's accuracy and the change of the others', the distance to the ideal, the balanced
accuracy of a linear probe at the edited site, at what the classifier reads, and at the logits
(of shuffled marks in brackets), the share of the class's images whose nearest neighbour is of the
class, and how much of the class a fine-tuned classifier has back after 1, 5 and 20 steps (in
brackets: a row that starts at zero).

    python benchmarks/forgetting.py [--classes 10]

With --concepts, the shortcuts of the small networks of `planted.py` in the place of classes: LEACE
(about zero where layers take no offset) at each site that has an exact permanent edit, fitted on
pictures as planted and judged on pairs, in which the attribute tells nothing of the class: of other
digits over other parts of the photographs, or (--alike) of the same digits and parts, drawn anew.

    python benchmarks/forgetting.py --concepts [--alike] [--seed 0]
"""

import argparse
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from concept_erasure import LeaceFitter

import salve_plugin as salve
from salve_plugin import Edit, HookedModel, LowRankMap
from salve_plugin.control.erasers import Centre
from salve_plugin.demo import digits
from salve_plugin.errors import UnsupportedModelError

# The folder of a script is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import planted

HEAD = "unembed.hook_in"
HIDDEN = ("blocks.1.mlp.hook_post", "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
CENTRES: tuple[Centre, ...] = ("mean", "origin")
FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "digits_vit.safetensors"


def leace(hooked: HookedModel, acts: salve.Activations, label: int) -> Edit:
    """Return LEACE of the class in what the classifier reads, folded into its weights."""
    mark = (acts.labels() == label)[:, None].double()
    eraser = LeaceFitter.fit(acts.tensor().double(), mark).eraser
    read = eraser.proj_right.T
    return salve.edit_at(
        hooked, HEAD, LowRankMap(eraser.proj_left, read, read.T @ eraser.bias, 0.0)
    )


def projected(hooked: HookedModel, train: digits.Split, site: str, label: int) -> Edit:
    """Return the difference of means of class token and patches, projected out of a branch."""
    _, cache = hooked.run_with_cache(train.images, names_filter=site)
    x, mark = cache[site].detach().double(), train.labels == label
    gaps = [part[mark].mean(0) - part[~mark].mean(0) for part in (x[:, 0], x[:, 1:].mean(1))]
    basis, _ = torch.linalg.qr(torch.stack(gaps, 1))
    return salve.edit_at(
        hooked, site, LowRankMap(basis, basis, x.flatten(0, 1).mean(0) @ basis, 0.0)
    )


def row(hooked: HookedModel, edit: Edit, test: digits.Split, label: int) -> list[float]:
    """Return the numbers of one edit of one class."""
    assessed = salve.assess(hooked, edit, test.batches(), target=label)
    ideal = assessed.effect.ideal
    assert ideal is not None
    site = edit.site.name
    sites = list(dict.fromkeys([site, HEAD]))
    known = salve.forgetting(
        hooked, edit, test.batches(), target=label, sites=sites, steps=(1, 5, 20)
    )
    probes = {each.site: each for each in known.recovery}
    assert known.neighbours is not None
    named = [probes[name] for name in (site, HEAD, "logits")]
    return [
        assessed.effect.target or 0.0,
        assessed.effect.others or 0.0,
        ideal.kl_target,
        ideal.runner_up,
        *(value for each in named for value in (each.after.accuracy, each.chance)),
        known.neighbours[1],
        *(value for pair in zip(known.relearned, known.fresh, strict=True) for value in pair),
    ]


def shown(values: list[float]) -> str:
    """Return a line of the table."""
    cells = [f"{100 * values[0]:.1f}", f"{100 * values[1]:+.1f}"]
    cells += [f"{values[2]:.2f}", f"{100 * values[3]:.0f}"]
    cells += [f"{100 * values[at]:.1f} ({100 * values[at + 1]:.0f})" for at in (4, 6, 8)]
    cells += [f"{100 * values[10]:.0f}"]
    cells += [f"{100 * values[at]:.0f} ({100 * values[at + 1]:.0f})" for at in (11, 13, 15)]
    return " | ".join(cells)


def erased_everywhere(
    hooked: HookedModel, seed: int, part: planted.Part
) -> Iterator[tuple[str, str, salve.Recovery, salve.Recovery]]:
    """Yield a kind of site, an attribute, and what a probe finds there and at the classifier."""
    drawn = planted.pictures("train", 3, seed)
    seen = list(zip(torch.split(drawn.images, 256), torch.split(drawn.labels, 256), strict=True))
    for site in hooked.sites:
        acts = salve.record(hooked, seen, site=site, progress=False, classes=digits.CLASSES)
        for column, name in enumerate(planted.ATTRIBUTES):
            concept = salve.find_concept(acts, drawn.attributes[:, column], name=name)
            edit = None
            for centre in CENTRES:
                try:
                    edit = salve.erase(hooked, concept, centre=centre)
                except UnsupportedModelError:
                    continue
                break
            if edit is None:  # no permanent edit of the site is exact
                break
            pairs = planted.pairs(part, column, 1, seed + 7)
            images, labels = (
                torch.cat([getattr(each, part) for each in pairs]) for part in ("images", "labels")
            )
            has = torch.arange(len(labels)) >= len(labels) // 2
            known = salve.forgetting(
                hooked, edit, zip(torch.split(images, 256), torch.split(labels, 256), strict=True),
                has=has, sites=list(dict.fromkeys([site, HEAD])),
            ).recovery  # fmt: skip
            # At the classifier the features stay: it is the logits that an edit there is to clear.
            at = known[-1] if site == HEAD else known[0]
            kind = "logits, of an edit of the classifier" if site == HEAD else f"`{site}`"
            yield re.sub(r"blocks\.\d+", "blocks.i", kind), name, at, known[-2]


def concepts(seed: int, part: planted.Part) -> None:
    """Print what a probe finds of planted attributes after they were erased."""
    print(
        "| network | probed | edits | before | after | chance | most above chance | at most five "
        "above | before the head |\n|---|---|" + "---:|" * 7
    )
    network: planted.NetworkName
    for network in ("resnet", "vit"):
        hooked = salve.attach(planted.trained(network, seed))
        groups: dict[str, list[tuple[salve.Recovery, salve.Recovery]]] = {}
        for kind, _, at, last in erased_everywhere(hooked, seed, part):
            groups.setdefault(kind, []).append((at, last))
        for kind, rows in groups.items():
            values = torch.tensor(
                [
                    [at.before.accuracy, at.after.accuracy, at.chance, last.after.accuracy]
                    for at, last in rows
                ]
            )
            before, after, chance, last_after = (100 * values.mean(0)).tolist()
            above = 100 * (values[:, 1] - values[:, 2].clamp(min=0.5))
            print(
                f"| {network} | {kind} | {len(rows)} | {before:.1f} | {after:.1f} | {chance:.1f} | "
                f"{float(above.max()):+.1f} | {int((above <= 5).sum())} | {last_after:.1f} |"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=10, help="how many classes, from 0 on")
    parser.add_argument("--concepts", action="store_true", help="planted attributes, not classes")
    parser.add_argument("--alike", action="store_true", help="judged on pictures like the fitted")
    parser.add_argument("--seed", type=int, default=0, help="of networks and pictures, of concepts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"1 thread, seed {args.seed if args.concepts else 0}"
    )
    started = time.perf_counter()
    if args.concepts:
        concepts(args.seed, "train" if args.alike else "test")
    else:
        classes(args.classes)
    print(f"{time.perf_counter() - started:.0f} s")


def classes(n_classes: int) -> None:
    """Print what is known of classes after they were suppressed or erased."""
    hooked = salve.attach(digits.load("vit", FIXTURE))
    train, test = digits.load_digits()
    acts = salve.record(hooked, train.batches(), progress=False, classes=digits.CLASSES)
    sae = salve.fit(acts, "l1", n_latents=64, seed=0, run=salve.Run(progress=False))
    features = salve.profile(sae, acts)
    results: dict[str, list[list[float]]] = {}

    def by_latents(goal: salve.SuppressClass) -> salve.Edit:
        return salve.choose(hooked, goal, acts, dictionary=sae, features=features).edit

    for label in range(n_classes):
        edits = {
            "mask (a bias)": salve.mask(hooked, label, acts),
            "features, rivals' rows": by_latents(salve.SuppressClass(label, by="latents")),
            "features, all rows (the paper)": by_latents(
                salve.SuppressClass(label, by="latents", rows=None, max_harm=1.0)
            ),
            "LEACE at the head": leace(hooked, acts, label),
            **{
                f"means projected at `{site}`": projected(hooked, train, site, label)
                for site in HIDDEN
            },
        }  # fmt: skip
        for name, edit in edits.items():
            results.setdefault(name, []).append(row(hooked, edit, test, label))
    print(
        "| edit | target % | others | KL to ideal | runner-up % | probe at the site | before the "
        "head | at the logits | neighbour % | back in 1 | 5 | 20 steps |\n|---|" + "---:|" * 11
    )
    for name, rows in results.items():
        means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        print(f"| {name} | {shown(means)} |")


if __name__ == "__main__":
    main()
