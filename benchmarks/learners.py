"""Every learner on real activations at the same number of active latents, side by side.

Data: the head inputs of the demo's two networks (digits), and a hidden map of
`tf_efficientnet_lite0` with its ImageNet weights, on views of the photographs that scikit-image and
scikit-learn ship. For each learner: held-out R² and L0, the share of predictions of the network
that stay when the reconstruction replaces the activation (head inputs only), the share of dead
latents, stability over seeds (matched cosine of the atoms, and that of random atoms), and processor
seconds of one fit, range test of the learning rate included. Learners with `k` get it, penalized
ones are steered to the same L0; for the others L0 is what it is.

    python benchmarks/learners.py --data digits_resnet digits_vit lite0
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

import salve_plugin as salve
from salve_plugin.demo import digits, pretrained
from salve_plugin.demo.photographs import augmented
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.head_gradient import head_gradient
from salve_plugin.hooks import HookedModel
from salve_plugin.validate.stability import stability
from salve_timm.create import transform_of

SIGNED_CODES = {"l1", "abs_topk", "itda", "variational", "mp"}
"""Learners whose codes have both signs: an atom and its negative are the same to them."""

HIDDEN = "blocks.6.hook_resid_post"
"""Site of lite0: the last stage, 7 x 7 positions of 320 features, every position a row."""


def digits_data(name: str, folder: Path) -> tuple[HookedModel, Activations]:
    """Record the head's inputs of a demo network, trained here in seconds."""
    train, _ = digits.load_digits()
    network = digits.train("vit" if name == "vit" else "resnet", train, seed=0)
    hooked = salve.attach(network)
    return hooked, salve.record(hooked, list(train.batches()), folder=folder, progress=False)


def lite0_data(folder: Path) -> tuple[HookedModel, Activations]:
    """Record a hidden map on 32 views of each photograph."""
    network = pretrained.load_network()
    transform = transform_of(network)
    hooked = salve.attach(network)
    batches = [
        (augmented(photo.image, transform, seed), torch.full((32,), seed))
        for seed, photo in enumerate(pretrained.photos())
    ]
    return hooked, salve.record(hooked, batches, HIDDEN, folder=folder, progress=False)


def kept(hooked: HookedModel, acts: Activations, dictionary: Dictionary) -> float | None:
    """Return the share of predictions that the reconstruction leaves alone; None off the head."""
    if acts.site.name != "unembed.hook_in":
        return None
    weight, bias = hooked.unembed()
    rows = acts.tensor()
    with torch.no_grad():
        before = (rows @ weight.T + bias).argmax(1)
        after = (dictionary(rows) @ weight.T + bias).argmax(1)
    return float((before == after).double().mean())


def arguments(name: str, target: int, gradient: Callable[[Tensor], Tensor] | None) -> Any:
    """Return what makes the learner use about `target` latents in each row."""
    learner = LEARNERS[name]
    options: dict[str, Any] = {}
    if "k" in {field.name for field in fields(learner)}:
        options["k"] = target
    elif learner.l0_control:
        options["target_l0"] = float(target)
    if name == "gradient_topk":
        options |= {"gradient": gradient} if gradient else {"beta": 0.0}
    return options


def measure(
    name: str, hooked: HookedModel, acts: Activations, args: argparse.Namespace
) -> dict[str, Any]:
    """Fit one learner with every seed; the first seed's numbers and the stability over all."""
    target = args.l0
    head = acts.site.name == "unembed.hook_in"
    options = arguments(name, target, head_gradient(hooked) if head else None)
    n_latents = args.expansion * acts.width
    runs, seconds = [], 0.0
    for seed in range(args.seeds):
        before = process_time()
        runs.append(
            salve.fit(
                acts, name, n_latents=min(n_latents, acts.n_rows // 2), seed=seed,
                steps=args.steps, initialization=args.initialization, **options,
            )
        )  # fmt: skip
        seconds += process_time() - before
    first = runs[0]
    same_shape = [run.atoms for run in runs[1:] if run.n_latents == first.n_latents]
    alike = (
        stability(first.atoms, same_shape, signed=name not in SIGNED_CODES) if same_shape else None
    )
    return {
        "learner": name,
        "r2": first.meta["held_out_r2"],
        "l0": first.meta["l0"],
        "kept": kept(hooked, acts, first),
        "dead": first.meta["dead_share"],
        "stability": alike and alike.cosine,
        "chance": alike and alike.null_cosine,
        "seconds": seconds / args.seeds,
        "rate": first.meta["learning_rate"],
        "n_latents": first.n_latents,
    }


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""

    def number(name: str, form: str) -> str:
        return f"{'-':>8}" if row[name] is None else f"{row[name]:>8{form}}"

    columns = [("r2", ".4f"), ("l0", ".1f"), ("kept", ".3f"), ("dead", ".3f")]
    columns += [("stability", ".3f"), ("chance", ".3f"), ("seconds", ".1f")]
    rate = "-" if row["rate"] is None else f"{row['rate']:g}"
    return f"{row['learner']:<15}" + "".join(number(*c) for c in columns) + f"{rate:>8}"


def main() -> None:
    """Print one table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", default=["digits_resnet", "digits_vit", "lite0"])
    parser.add_argument("--learners", nargs="+", default=list(LEARNERS))
    parser.add_argument("--l0", type=int, default=8)
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--initialization", default="rows")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch "
        f"{torch.__version__}, 1 thread; seeds 0 to {args.seeds - 1}, {args.steps} steps, "
        f"{args.expansion} latents a feature, initial atoms: {args.initialization}"
    )
    header = ["R²", "L0", "kept", "dead", "stable", "chance", "seconds", "rate"]
    with tempfile.TemporaryDirectory() as scratch:
        for data in args.data:
            folder = Path(scratch) / data
            hooked, acts = (
                lite0_data(folder)
                if data == "lite0"
                else digits_data(data.removeprefix("digits_"), folder)
            )
            print(f"\n{data}: {acts.n_rows} rows x {acts.width} of '{acts.site.name}'")
            print(f"{'':<15}" + "".join(f"{name:>8}" for name in header))
            for name in args.learners:
                row = {"data": data, **measure(name, hooked, acts, args)}
                print(line(row), flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
