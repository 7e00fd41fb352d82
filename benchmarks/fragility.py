"""Joint edits, equal budgets, windows and self-repair, measured: python benchmarks/fragility.py.

Digits with a bright bar at the upper edge, on the two small networks of the tests. Everything is
fitted on one half of the test digits and measured on the other. Settings were chosen before any
number was seen (`repair` joined after the first table): directional ablation alone at hidden sites
of the CNN, whose padded kernels see no offset.
"""

import argparse
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

import salve_plugin as salve
from salve_plugin.demo import digits

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
HEAD = "unembed.hook_in"
CLASSES = list("0123456789")
SITES = {
    "resnet": ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post", HEAD],
    "vit": [f"blocks.{i}.{part}" for i in range(1, 4) for part in ("hook_attn_out", "hook_mlp_out")]
    + [HEAD],
}
LABEL = 3
KL = 0.1


def main() -> None:
    """Print the four tables for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(SITES), choices=list(SITES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, "
        f"{options.threads} threads, seed {options.seed}"
    )
    test = digits.load_digits()[1]
    for name in options.networks:
        begin = time.perf_counter()
        model = digits.load(name, FIXTURES / f"digits_{name}.safetensors")
        hooked = salve.attach(model)
        print(f"\n## {name}")
        joint_edits(hooked, SITES[name], test, options.seed)
        budgets_and_windows(hooked, test, options.seed)
        if name == "vit":
            repairs(hooked, SITES[name][:-1], test, options.seed)
        print(f"({time.perf_counter() - begin:.0f} s)")


def marked(images: Tensor) -> Tensor:
    """Return the images with the bar."""
    result = images.clone()
    result[:, :, :3] = images.max()
    return result


def loader(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return images and labels as batches."""
    return list(zip(torch.split(images, 64), torch.split(labels, 64), strict=True))


@torch.no_grad()
def joint_edits(hooked: salve.HookedModel, sites: list[str], test: digits.Split, seed: int) -> None:
    """Compare what is left of a mark's effect after edits of one site and of several."""
    model = hooked.model
    fitted = slice(0, 180)
    plain, labels = test.images[180:], test.labels[180:]
    before = model(plain)
    print("edit | marked agree with plain before | mean KL(plain || marked) | clean accuracy")
    random = torch.randn(hooked.sites[HEAD].width, 1, generator=torch.Generator().manual_seed(seed))
    random = random / random.norm()
    controls = salve.LowRankMap(random, random, torch.zeros(1))
    rows: dict[str, tuple[salve.Edit, ...]] = {
        "none": (),
        "random direction at the head": (salve.edit_at(hooked, HEAD, controls),),
    }
    for eraser in ("directional_ablation", "leace", "repair"):
        padded = "blocks.1.hook_attn_out" not in hooked.sites  # kernels see no offset
        for profile in ("uniform", "depth"):
            for label, chosen in (("head", sites[-1:]), (f"{len(sites)} sites", sites)):
                rows[f"{eraser}, {profile}, {label}"] = salve.erase_through(
                    hooked, marked(test.images[fitted]), test.images[fitted], chosen, eraser,
                    labels=test.labels[fitted], profile=profile, seed=seed,
                    centre="origin" if padded and len(chosen) > 1 else "mean",
                )  # fmt: skip
    for name, edits in rows.items():
        for edit in edits:
            edit.apply_(model)
        clean, with_mark = model(plain), model(marked(plain))
        for edit in edits:
            edit.revert_(model)
        agree = float((with_mark.argmax(1) == before.argmax(1)).double().mean())
        p, q = (part.double().log_softmax(1) for part in (before, with_mark))
        kl = float((p.exp() * (p - q)).sum(1).mean())
        accuracy = float((clean.argmax(1) == labels).double().mean())
        print(f"{name} | {agree:.3f} | {kl:.3f} | {accuracy:.3f}")


def budgets_and_windows(hooked: salve.HookedModel, test: digits.Split, seed: int) -> None:
    """Suppress one class by several edits at equal KL, and print their windows over contexts."""
    fit = loader(test.images[:180], test.labels[:180])
    held = loader(test.images[180:], test.labels[180:])
    acts = salve.record(hooked, fit, progress=False, classes=CLASSES)
    x, y = acts.tensor().double(), acts.labels()
    shift = x[y == LABEL].mean(0) - x[y != LABEL].mean(0)
    shift = (shift / shift.norm()).float()
    draw = torch.Generator().manual_seed(seed)
    random = torch.nn.functional.normalize(torch.randn(len(shift), generator=draw), dim=0)
    reach = 1 / float(shift.abs().max())
    edits = {
        "mask (a plain bias)": salve.mask(hooked, LABEL, acts),
        "row zeroed": salve.zero_row(hooked, LABEL),
        "gate along the difference of means, own row": salve.edit_at(
            hooked, HEAD, salve.Gate(shift[None], reach), rows=[LABEL]
        ),
        "gate along the difference of means, all rows": salve.edit_at(
            hooked, HEAD, salve.Gate(shift[None], reach)
        ),
        "gate along a random direction, all rows": salve.edit_at(
            hooked, HEAD, salve.Gate(random[None], reach)
        ),
        "LEACE of the class": salve.erase(
            hooked, salve.find_concept(acts, y == LABEL), balanced=False
        ),
    }
    print(f"\nclass {LABEL} at mean KL {KL} on the fitted half: still predicted | others lost")
    for name, edit in edits.items():
        try:
            matched = salve.with_kl(hooked, edit, acts, KL, most=64.0)
        except salve.SalveError as error:
            print(f"{name} | {error}")
            continue
        target, lost = counts(hooked, matched, held)
        print(f"{name} | {target:.3f} | {lost:.3f}")
    noise = torch.Generator().manual_seed(seed)
    result = salve.fragility(
        hooked, edits, held, label=LABEL,
        contexts={
            "noise": lambda images: images + 0.3 * torch.randn(images.shape, generator=noise),
            "contrast": lambda images: 0.5 * images,
            "blur": lambda images: torch.nn.functional.avg_pool2d(images, 3, 1, 1),
        },
    )  # fmt: skip
    print(f"\n{result.table()}")


@torch.no_grad()
def counts(
    hooked: salve.HookedModel, edit: salve.Edit, held: list[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Return the share of a class's images that stay in it, and of the others that are lost."""
    images, labels = (torch.cat([batch[i] for batch in held]) for i in (0, 1))
    was = hooked.model(images).argmax(1)
    with edit.applied(hooked.model):
        now = hooked.model(images).argmax(1)
    own, others = (labels == LABEL) & (was == LABEL), (labels != LABEL) & (was == labels)
    stays, lost = (now == LABEL)[own].double().mean(), (now != labels)[others].double().mean()
    return float(stays), float(lost)


def repairs(hooked: salve.HookedModel, sites: list[str], test: digits.Split, seed: int) -> None:
    """Print how much of single hidden edits later layers make good."""
    images = test.images[180:][test.labels[180:] == LABEL]
    print(f"\nself-repair of class {LABEL}'s logit: site | full | direct | recovery | at random")
    for site in sites:
        acts = salve.record(
            hooked, loader(test.images[:180], test.labels[:180]), site, progress=False
        )
        concept = salve.find_concept(acts, test.labels[:180] == LABEL)
        edit = salve.erase(hooked, concept, "mean_ablation", balanced=False)
        width = hooked.sites[site].width
        draw = torch.Generator().manual_seed(seed)
        axis = torch.nn.functional.normalize(torch.randn(width, 1, generator=draw), dim=0)
        control = salve.edit_at(hooked, site, salve.LowRankMap(axis, axis, torch.zeros(1)))
        own, other = (salve.self_repair(hooked, each, images, LABEL) for each in (edit, control))
        cells = [f"{number:.3f}" for number in (own.full, own.direct)]
        cells += [f"{repair.recovery:.2f}" for repair in (own, other)]
        print(" | ".join([site, *cells]))


if __name__ == "__main__":
    main()
