"""The demo on digits: train, discover, validate, control, share, for a CNN and a ViT."""

import json
import pickle
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from salve_plugin.adapter import attach
from salve_plugin.control.applied_edits import status
from salve_plugin.control.assessment.assess import assess
from salve_plugin.control.critical import alpha_crit
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import Evaluation, evaluate
from salve_plugin.demo import digits
from salve_plugin.demo.crit_check import CritCheck, check_crit
from salve_plugin.demo.environment import environment
from salve_plugin.demo.measures import (
    ClassResult,
    CrossClass,
    Enhancement,
    Experiment,
    cross_class,
    enhance_class,
    suppress_class,
)
from salve_plugin.demo.progress import Steps
from salve_plugin.demo.shortcut import ShortcutResult, run_shortcut
from salve_plugin.discover.features import profile
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import SalveError
from salve_plugin.report.atlas import atlas
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.files import write_atomically
from salve_plugin.validate.heat_maps import (
    Explained,
    grad_fam_pictures,
    maximization_tile,
    recorded_values,
)
from salve_plugin.validate.maximization import maximize
from salve_plugin.validate.pictures import stretched
from salve_plugin.validate.sheets import Tile, sheet

THREADS = 1
TOP_IMAGES = 3

DATA = {"name": "scikit-learn digits, resized to 32x32", "split": "test", "images": 360}


@dataclass(frozen=True)
class NetworkResult:
    """Everything that was measured on one network.

    Attributes:
        name: of the network.
        accuracy: on the test images, unedited.
        dictionary: size and quality of the first dictionary.
        classes: by class, for the first dictionary; edits evaluated with the whole network.
        seeds: by dictionary seed, then by class; measured on recorded head inputs.
        crit: check of the critical strengths, by class.
        enhanced: by class.
        crossing: the latent that two classes share.
        shortcut: the planted shortcut, on a network of its own.
        artifacts: by class, the artifact's digest and its size in bytes.
    """

    name: str
    accuracy: float
    dictionary: Mapping[str, Any]
    classes: list[ClassResult]
    seeds: list[list[ClassResult]]
    crit: list[CritCheck]
    enhanced: list[Enhancement]
    crossing: CrossClass
    shortcut: ShortcutResult
    artifacts: list[tuple[str, int]]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "accuracy": self.accuracy,
            "dictionary": dict(self.dictionary),
            "classes": [result.to_json() for result in self.classes],
            "seeds": [[result.to_json() for result in results] for results in self.seeds],
            "alpha_crit": [asdict(check) for check in self.crit],
            "enhanced": [asdict(result) for result in self.enhanced],
            "cross_class": asdict(self.crossing),
            "shortcut": asdict(self.shortcut),
            "artifacts": [{"sha256": digest, "bytes": size} for digest, size in self.artifacts],
        }


def run_digits(out: Path, *, seeds: int, steps: Steps) -> list[NetworkResult]:
    """Run the whole method on both networks and write everything below `out`.

    Each network has a process of its own with one thread: the matrices are small, so two threads
    would mostly wait for each other, and one thread gives the same numbers on any machine of a
    kind.

    Args:
        out: folder for the results; made if needed.
        seeds: how many dictionaries to learn for each network.
        steps: where progress is reported.
    """
    spawn = get_context("spawn")
    with ProcessPoolExecutor(len(digits.NETWORKS), mp_context=spawn) as pool:
        jobs = [pool.submit(_packed_run, name, out, seeds, steps) for name in digits.NETWORKS]
        results = [pickle.loads(job.result()) for job in jobs]
    write_atomically(out / "results.json", _json(results, seeds))
    return results


def _packed_run(name: digits.NetworkName, out: Path, seeds: int, steps: Steps) -> bytes:
    """Return the result of `run_network` as bytes, from one process to another.

    Between processes torch sends every tensor as an open file, and a result has a tensor for each
    edit that was tried: more than a process may open.
    """
    return pickle.dumps(run_network(name, out, seeds, steps))


def run_network(name: digits.NetworkName, out: Path, seeds: int, steps: Steps) -> NetworkResult:
    """Train one network and run the whole method on it, with one thread.

    Arguments as for `run_digits`.
    """
    torch.set_num_threads(THREADS)
    train, test = digits.load_digits()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    with steps.step(f"{name}: train on {len(train.labels)} digits"):
        network = digits.train(name, train)
    return _run_network(name, network, train, test, folder, seeds, steps)


def _run_network(
    name: digits.NetworkName,
    network: nn.Module,
    train: digits.Split,
    test: digits.Split,
    folder: Path,
    seeds: int,
    steps: Steps,
) -> NetworkResult:
    experiment = _discover(name, network, train, test, folder, steps)
    n_classes = len(digits.CLASSES)
    by_seed = [_suppress_all(experiment, n_classes, f"{name}: dictionary 1 of {seeds}", 0, steps)]
    for seed in range(1, seeds):
        with steps.step(f"{name}: learn dictionary {seed + 1} of {seeds}"):
            retrained = experiment.with_dictionary(fit(experiment.train, "l1", seed=seed))
        label = f"{name}: dictionary {seed + 1} of {seeds}"
        by_seed.append(_suppress_all(retrained, n_classes, label, seed, steps))
    classes = by_seed[0]
    with steps.step(f"{name}: check the critical strengths by brute force"):
        crit = [
            check_crit(experiment, result.recipe.edit, result.label, test.images)
            for result in classes
        ]
    enhanced = [enhance_class(experiment, label) for label in range(n_classes)]
    pictures = _draw(experiment, classes, test, folder, name, steps)
    with steps.step(f"{name}: save, reload, apply and revert one artifact a class"):
        artifacts = [
            _share(name, experiment, result, test, folder, pictures[result.label])
            for result in classes
        ]
    with steps.step(f"{name}: write the atlas"):
        atlas(
            experiment.hooked, experiment.dictionary, experiment.train, folder / "atlas",
            images=train.loader().dataset, title=f"Digits, {name}", mapped=n_classes, force=True,
        )  # fmt: skip
    with steps.step(f"{name}: plant a shortcut, find it and remove it"):
        shortcut = run_shortcut(name, train, test, folder)
    meta = experiment.dictionary.meta
    quality = {key: meta[key] for key in ("held_out_r2", "l0", "dead_share", "options")}
    return NetworkResult(
        name=name,
        accuracy=evaluate(network, test.batches()).overall,
        dictionary={"n_latents": experiment.dictionary.n_latents, **quality},
        classes=classes,
        seeds=by_seed,
        crit=crit,
        enhanced=enhanced,
        crossing=cross_class(experiment),
        shortcut=shortcut,
        artifacts=artifacts,
    )


def _discover(
    name: digits.NetworkName,
    network: nn.Module,
    train: digits.Split,
    test: digits.Split,
    folder: Path,
    steps: Steps,
) -> Experiment:
    from safetensors.torch import save

    write_atomically(
        folder / "weights.safetensors", save(network.state_dict(), metadata={"format": "pt"})
    )
    hooked = attach(network)
    with steps.step(f"{name}: record the head's input and learn a dictionary"):
        train_acts, test_acts = (
            record(
                hooked,
                split.loader(),
                folder=folder / "activations" / split_name,
                progress=False,
            )
            for split_name, split in (("train", train), ("test", test))
        )
        dictionary = fit(train_acts, "l1", seed=0)
        dictionary.save_pretrained(folder / "dictionary")
        return Experiment(
            hooked, train_acts, test_acts, dictionary, profile(dictionary, train_acts)
        )


def _suppress_all(
    experiment: Experiment, n_classes: int, label: str, seed: int, steps: Steps
) -> list[ClassResult]:
    with steps.step(f"{label}: suppress each class"):
        return [suppress_class(experiment, index, seed=seed) for index in range(n_classes)]


def _draw(
    experiment: Experiment,
    classes: list[ClassResult],
    test: digits.Split,
    folder: Path,
    name: str,
    steps: Steps,
) -> dict[int, dict[str, bytes]]:
    """Write the two sheets; return each class's pictures by name."""
    hooked, dictionary = experiment.hooked, experiment.dictionary
    examples = torch.stack([test.images[test.labels == result.label][0] for result in classes])
    latents = [result.named.edit.latent for result in classes]
    names = [f"digit {result.label}" for result in classes]
    with steps.step(f"{name}: draw Grad-FAM maps"):
        explained = Explained.of(hooked, dictionary, examples, latents)
        write_atomically(folder / "grad_fam.png", explained.sheet(names, columns=4))
    made, tiles, means = [], [], experiment.features.means
    with steps.step(f"{name}: maximize one latent a class"):
        for label, latent in enumerate(latents):
            sign: Literal[1, -1] = 1 if means[label, latent] >= means[:, latent].mean() else -1
            made.append(
                maximize(
                    hooked,
                    dictionary,
                    latent,
                    sign=sign,
                    size=(1, digits.IMAGE_SIZE, digits.IMAGE_SIZE),
                    low=digits.BLACK,
                    high=digits.WHITE,
                )
            )
            values = recorded_values(experiment.test, dictionary, latent)
            tiles.append(maximization_tile(made[-1]))
            for top in (sign * values).argsort(descending=True)[:TOP_IMAGES].tolist():
                caption = f"digit {test.labels[top]}, z = {values[top]:.3g}"
                tiles.append(Tile(stretched(test.images[top]), caption))
    write_atomically(folder / "maximization.png", sheet(tiles, columns=1 + TOP_IMAGES))
    return {
        result.label: {
            **grad_fam_pictures(
                hooked, dictionary, result.named.edit, image[None], names=[f"digit {result.label}"]
            ),
            "maximized": sheet([maximization_tile(best)], columns=1, colours=256),
        }
        for result, image, best in zip(classes, examples, made, strict=True)
    }


def _share(
    name: digits.NetworkName,
    experiment: Experiment,
    result: ClassResult,
    test: digits.Split,
    folder: Path,
    pictures: Mapping[str, bytes],
) -> tuple[str, int]:
    """Save the class's edit, then prove on a fresh copy of the network that it travels.

    The copy is built from the saved weights; the edit is read back, applied, evaluated and
    reverted, after which every weight must be what it was, bit for bit.
    """
    edit, label = result.named.edit, result.label
    path = folder / "artifacts" / digits.CLASSES[label]
    fresh = digits.load(name, folder / "weights.safetensors")
    after = _evaluated(edit, fresh, test)
    crit = alpha_crit(experiment.hooked, edit, experiment.test, target="flip", classes=[label])
    artifact = EditArtifact.of(
        experiment.hooked,
        edit,
        dictionary=experiment.dictionary,
        alpha_crit=crit,
        assessment=assess(
            experiment.hooked, edit, experiment.test, target=label, dictionary=experiment.dictionary
        ),
        labels=digits.CLASSES,
        data=DATA,
        pictures=pictures,
    )
    artifact.save_pretrained(path)
    loaded = EditArtifact.from_pretrained(path)
    state = {key: value.clone() for key, value in fresh.state_dict().items()}
    loaded.edit.apply_(fresh)
    same = torch.equal(evaluate(fresh, test.batches()).confusion, after.confusion)
    loaded.edit.revert_(fresh)
    restored = all(torch.equal(state[key], value) for key, value in fresh.state_dict().items())
    if not (same and restored and loaded.digest == artifact.digest and not status(fresh).applied):
        raise SalveError(f"the artifact in {path} did not survive its round trip; report a bug")
    return artifact.digest, sum(file.stat().st_size for file in path.iterdir())


def _evaluated(edit: Edit, network: nn.Module, test: digits.Split) -> Evaluation:
    with edit.applied(network):
        return evaluate(network, test.batches())


def _json(results: list[NetworkResult], seeds: int) -> bytes:
    content = {
        "environment": environment(THREADS),
        "seeds": seeds,
        "networks": {result.name: result.to_json() for result in results},
    }
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
