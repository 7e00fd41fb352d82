"""The paper's linear dictionary: what its size, start and penalty do to it and to its edits.

On the demo's two networks (digits), trained here: held-out R² and L0, coherence (largest |cosine|
of two atoms), share of twins (atoms with another of |cosine| above 0.99), share of latents that are
active in more than a tenth of the rows, class separability beside that of random atoms, and for
how many of ten classes and --seeds dictionaries the demo's goal is met on the test images (target
accuracy of at most 5 %, the others' mean loss at most one point) by the paper's edit on all rows
and by named rows.

    python benchmarks/paper_dictionary.py
"""

import argparse
import platform
from typing import Any

import torch

import salve_plugin as salve
from salve_plugin.control.change import Change
from salve_plugin.demo import digits
from salve_plugin.demo.measures import Experiment, suppress_class
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import profile
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.hooks import HookedModel

SETTINGS: list[dict[str, Any]] = [
    {},
    {"n_latents": 10},
    {"n_latents": 10, "initialization": "kmeans"},
    {"n_latents": 16},
    {"l1": 0.3},
    {"l1": 1.0},
]
"""What `fit` is given besides the learner; the first are the defaults."""


def met(change: Change) -> bool:
    """Say whether an edit met the demo's goal."""
    return change.target_after <= 0.05 and change.others_mean >= -0.01


def goals(hooked: HookedModel, train: Activations, test: Activations, dictionaries: Any) -> Any:
    """Return for how many classes and dictionaries the two edits met the goal."""
    by_paper = by_rows = 0
    for seed, dictionary in enumerate(dictionaries):
        experiment = Experiment(hooked, train, test, dictionary, profile(dictionary, train))
        for label in range(len(digits.CLASSES)):
            result = suppress_class(experiment, label, seed=seed)
            by_paper += met(result.recipe_change)
            by_rows += met(result.named_change)
    return by_paper, by_rows


def twins(dictionary: Dictionary) -> float:
    """Return the share of atoms that another atom has the direction of."""
    cosines = (dictionary.atoms @ dictionary.atoms.T).abs().fill_diagonal_(0)
    return float((cosines.max(1).values > 0.99).double().mean())


def main() -> None:
    """Print one line for each network and setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch "
        f"{torch.__version__}, 1 thread, seeds 0 to {args.seeds - 1}\n\n"
        "| | settings | latents | R² | L0 | coherence | twins | dense | separability | random | "
        f"met, paper | met, named rows |\n|---|---|{'---:|' * 10}"
    )
    splits = digits.load_digits()
    names: tuple[digits.NetworkName, ...] = ("resnet", "vit")
    for name in names:
        hooked = salve.attach(digits.train(name, splits[0], seed=0))
        train, test = (salve.record(hooked, list(s.batches()), progress=False) for s in splits)
        for settings in SETTINGS:
            found = [salve.fit(train, "l1", seed=seed, **settings) for seed in range(args.seeds)]
            rows = salve.quality(found[0], train, controls=["random"]).rows
            own, random = rows["dictionary"], rows["random"]
            paper, named = goals(hooked, train, test, found)
            settings_text = ", ".join(f"{key}={value}" for key, value in settings.items())
            print(
                f"| {name} | {settings_text or 'defaults'} | {own.n_latents} | {own.r2:.3f} | "
                f"{own.l0:.1f} | {own.coherence:.2f} | {twins(found[0]):.2f} | "
                f"{own.dense_share:.2f} | {own.separability:.3f} | {random.separability:.3f} | "
                f"{paper} of {10 * args.seeds} | {named} of {10 * args.seeds} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
