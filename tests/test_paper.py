"""The benchmark of the paper's claims: on both digits networks, on a folder, and on torchvision."""

import hashlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import salve_plugin as salve
from benchmarks import paper
from benchmarks.salve_paper import claims
from benchmarks.salve_paper.common import Numbers
from benchmarks.salve_paper.curves import suppression
from benchmarks.salve_paper.latents import sharing
from benchmarks.salve_paper.source import LOOPS, _cifar100_superclasses, open_source, superclasses
from salve_plugin.control.change import change
from salve_plugin.control.evaluate import evaluate
from salve_plugin.demo import digits
from salve_plugin.demo.measures import Experiment
from salve_plugin.discover.features import profile
from salve_plugin.errors import InputError

FIXTURES = Path(__file__).parent / "fixtures"
VERDICTS = {"holds", "holds in part", "does not hold", "not tested"}
CHECKPOINTS = [str(FIXTURES / f"digits_{name}.safetensors") for name in digits.NETWORKS]


def _rows(table: str) -> list[list[str]]:
    """Return the cells of the claims' table, without its head."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line] for line in lines if len(line) == 5]
    assert rows[0][0] == "claim"
    return rows[1:]


def _run(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> tuple[str, Any]:
    paper.main([*arguments, "--seeds", "2", "--steps", "60", "--json", str(out)])
    return capsys.readouterr().out, json.loads(out.read_text())


def test_every_claim_is_judged_on_both_networks_by_its_own_numbers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    printed, content = _run(
        capsys,
        tmp_path / "all.json",
        "--checkpoint",
        *CHECKPOINTS,
        "--per-class",
        "12",
        "--classes",
        "6",
    )
    rows = _rows(printed)
    assert [row[0] for row in rows] == [
        *(name for name in claims.CLAIMS for _ in digits.NETWORKS), "CNN and ViT",
    ]  # fmt: skip
    verdicts: dict[str, dict[str, claims.Verdict]] = {}
    for name, network, found, control, verdict in rows[:-1]:
        measured = content["networks"][network]["claims"][name]
        judged = claims.CLAIMS[name].judge(measured["numbers"])
        claim = claims.CLAIMS[name]
        assert verdict == f"**{judged}**{claim.as_good(measured['numbers'])}"
        assert measured["verdict"] == judged
        assert found == claims.CLAIMS[name].found(measured["numbers"])
        assert control == claims.CLAIMS[name].control(measured["numbers"])
        verdicts.setdefault(network, {})[name] = judged
    assert rows[-1][-1] == f"**{claims.judge_networks(verdicts)}**"
    for claim in claims.CLAIMS.values():
        assert claim.rule in printed
    for stated in ("torch 2", "seeds 0 to 1", "threads 1", "first run"):
        assert stated in printed


@pytest.fixture(scope="module")
def experiment(digits_train: digits.Split, digits_test: digits.Split) -> Experiment:
    network = digits.load("resnet", FIXTURES / "digits_resnet.safetensors")
    hooked = salve.attach(network)
    train, test = (
        salve.record(hooked, split.loader(), progress=False)
        for split in (
            digits.Split(digits_train.images[:400], digits_train.labels[:400]),
            digits_test,
        )
    )
    dictionary = salve.fit(train, "l1", seed=0, steps=50)
    return Experiment(hooked, train, test, dictionary, profile(dictionary, train))


def test_suppression_is_what_the_edited_network_does(
    experiment: Experiment, digits_test: digits.Split
) -> None:
    outcome = suppression(experiment, [3], seed=0)
    entry = outcome.details[0]
    before = evaluate(experiment.hooked, digits_test.batches())
    edits = {
        "dominant": salve.suppress(
            experiment.hooked, experiment.dictionary,
            latent=experiment.features.dominant(3), strength=entry["strength"],
        ),
        "mask": salve.mask(experiment.hooked, 3, experiment.train),
    }  # fmt: skip
    for name, edit in edits.items():
        with edit.applied(experiment.hooked):
            after = change(before, evaluate(experiment.hooked, digits_test.batches()), 3)
        assert entry["effects"][name]["target_after"] == after.target_after
        assert entry["effects"][name]["others_mean"] == pytest.approx(after.others_mean, abs=1e-12)
    reached = after.target_after <= 0.05 and after.others_mean >= -0.01
    assert outcome.numbers["met_mask"] == float(reached) == 1.0


def test_planted_superclasses_share_latents_and_permuted_ones_do_not(
    experiment: Experiment,
) -> None:
    """Class means are put where classes 0-4 and 5-9 have five latents in common each."""
    means = torch.zeros(10, experiment.dictionary.n_latents, dtype=torch.float64)
    means[:5, :5] = 1
    means[5:, 5:10] = 1
    planted = profile(experiment.dictionary, experiment.train)
    object.__setattr__(planted, "means", means)
    trial = Experiment(
        experiment.hooked, experiment.train, experiment.test, experiment.dictionary, planted
    )
    true = sharing(trial, range(10), [0] * 5 + [1] * 5, seed=0)
    mixed = sharing(trial, range(10), [0, 1] * 5, seed=0)
    assert claims.judge_sharing(true.numbers) == "holds"
    assert true.numbers["p"] < 0.05 < mixed.numbers["p"]
    assert claims.judge_sharing(mixed.numbers) == "does not hold"
    assert sharing(trial, range(10), None, seed=0).numbers == {}
    assert sharing(trial, [0, 5], [0] * 5 + [1] * 5, seed=0).numbers == {}


LIMITS: list[tuple[str, Numbers, Numbers, Numbers]] = [
    # claim, numbers with which it holds, what spoils that, and what spoils it for good
    ("dominant latents", {"own_dominant": 1.0, "auc_dominant": 0.95, "auc_random": 0.89},
     {"own_dominant": 0.8}, {"auc_random": 0.91}),
    ("suppression", {"met_dominant": 0.9, "met_random_latent": 0.4, "met_random_direction": 0.0},
     {"met_random_latent": 0.5}, {"met_dominant": 0.4}),
    ("enhancement", {"rising": 0.9, "gain_dominant": 0.3, "gain_random_latent": 0.2,
                     "gain_random_direction": 0.1},
     {"gain_random_direction": 0.3}, {"gain_dominant": -0.1}),
    ("cross-class latents", {"selective_learned": 0.8, "selective_random": 0.4},
     {"selective_random": 0.6}, {"selective_random": 0.8}),
    ("critical strength: closed form",
     {"finite": 10.0, "near": 0.95, "left": 0.01, "order": 0.9}, {"left": 0.2}, {"order": 0.1}),
    ("critical strength: diagnosis",
     {"classes": 10.0, "predicts_zero": 0.9, "predicts_margin": 0.5},
     {"predicts_margin": 0.95}, {"predicts_zero": 0.3}),
    ("initialisations",
     {"seeds": 10.0, "dominant": 0.95, "other_classes": 0.1, "agreement": 0.95},
     {"agreement": 0.8}, {"dominant": 0.2}),
    ("superclasses", {"excess": 0.2, "random_high": 0.1, "p": 0.01},
     {"random_high": 0.3}, {"p": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "good", "spoils", "breaks"), LIMITS, ids=[x[0] for x in LIMITS])
def test_a_verdict_follows_from_the_numbers(
    name: str, good: Numbers, spoils: Numbers, breaks: Numbers
) -> None:
    judge = claims.CLAIMS[name].judge
    assert judge(good) == "holds"
    assert judge({**good, **spoils}) == "holds in part"
    assert judge({**good, **spoils, **breaks}) == "does not hold"


def test_a_control_that_is_as_good_is_named() -> None:
    numbers = {"met_dominant": 0.9, "met_zero_row": 0.8, "met_mask": 0.9, "met_pca": 0.1}
    numbers |= {"met_random_latent": 0.0, "met_random_direction": 0.0}
    assert claims.CLAIMS["suppression"].as_good(numbers) == "; as good: mask"
    assert claims.CLAIMS["suppression"].as_good({**numbers, "met_mask": 0.7}) == ""


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_reaching_the_goal_more_often_never_worsens_the_verdict(
    less: float, more: float, random: float
) -> None:
    less, more = sorted((less, more))
    order = ["does not hold", "holds in part", "holds"]
    ranks = [
        order.index(
            claims.judge_suppression(
                {"met_dominant": met, "met_random_latent": random, "met_random_direction": 0.0}
            )
        )
        for met in (less, more)
    ]
    assert ranks[0] <= ranks[1]


def test_networks_are_compared_on_what_was_tested_on_all() -> None:
    good: dict[str, claims.Verdict] = dict.fromkeys(claims.CLAIMS, "holds")
    assert claims.judge_networks({"cnn": good}) == "not tested"
    assert claims.judge_networks({"cnn": good, "vit": good}) == "holds"
    untested: dict[str, claims.Verdict] = {**good, "superclasses": "not tested"}
    assert claims.judge_networks({"cnn": good, "vit": untested}) == "holds"
    worse: dict[str, claims.Verdict] = {**good, "suppression": "does not hold"}
    assert claims.judge_networks({"cnn": good, "vit": worse}) == "holds in part"
    assert "differ on suppression" in claims.networks_found({"cnn": good, "vit": worse})
    bad: dict[str, claims.Verdict] = dict.fromkeys(claims.CLAIMS, "does not hold")
    assert claims.judge_networks({"cnn": bad, "vit": bad}) == "does not hold"


def _write_mnist(root: Path, split: digits.Split, prefix: str, most: int) -> None:
    """Write the first digits as torchvision's MNIST reads them: the IDX files of its authors."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    images, labels = _grey(split.images[:most]), split.labels[:most].byte().numpy()
    head = struct.pack(">IIII", 0x803, len(images), *images.shape[1:])
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">II", 0x801, len(labels))
    (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def _grey(images: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    pixels = (images[:, 0] * digits.STD + digits.MEAN).clamp(0, 1) * 255
    return pixels.byte().numpy()


def _write_folder(root: Path, split: digits.Split, most: int) -> None:
    from PIL import Image

    images, labels = _grey(split.images[:most]), split.labels[:most].tolist()
    for at, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{at}.png")


@pytest.mark.parametrize("kind", ["torchvision", "folders"])
def test_any_timm_model_runs_on_torchvision_and_on_folders(
    kind: str, digits_train: digits.Split, digits_test: digits.Split,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights, data = tmp_path / "weights.safetensors", tmp_path / "data"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    options = ["--model", "test_resnet", "--checkpoint", str(weights), "--fit-head"]
    if kind == "torchvision":
        _write_mnist(data, digits_train, "train", 90)
        _write_mnist(data, digits_test, "t10k", 40)
        options += ["--data", "torchvision:MNIST", "--root", str(data), "--per-class", "5"]
    else:
        _write_folder(data / "train", digits_train, 90)
        _write_folder(data / "val", digits_test, 40)
        groups = tmp_path / "groups.json"
        groups.write_text(json.dumps(LOOPS))
        options += ["--data", str(data), "--groups", str(groups)]
    printed, content = _run(capsys, tmp_path / "all.json", *options, "--classes", "4")
    about = content["networks"]["test_resnet"]["about"]
    # The head was fitted on the images, so that it beats guessing one class of ten.
    assert about["test_accuracy"] > 0.2
    assert about["classes"] == 4
    rows = _rows(printed)
    assert {row[-1].split("**")[1] for row in rows} <= VERDICTS
    assert (rows[-2][-1] == "**not tested**") == (kind == "torchvision")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="needs --data"):
        open_source("test_resnet", None)
    with pytest.raises(InputError, match="digits-resnet"):
        open_source("digits-swin", None)
    with pytest.raises(InputError, match="'z'"):
        superclasses(("a", "b"), [["a", "z"]])
    with pytest.raises(SystemExit):
        paper.main(["--model", "digits-swin"])


def test_superclasses_of_cifar100_are_read_from_its_files(tmp_path: Path) -> None:
    """The reader of torchvision on a file of the same format: one image of each of six classes."""
    from torchvision.datasets import CIFAR100

    fine, coarse = [3, 1, 0, 2, 5, 4], [1, 0, 0, 1, 2, 2]
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    pixels = np.zeros((6, 3072), dtype=np.uint8)
    content = {"data": pixels, "fine_labels": fine, "coarse_labels": coarse}
    names = {"fine_label_names": list("abcdef")}
    files = {}
    for name, part in (("train", content), ("test", content), ("meta", names)):
        (folder / name).write_bytes(pickle.dumps(part))
        files[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    class Small(CIFAR100):  # type: ignore[misc] # torchvision has no types
        train_list: ClassVar = [["train", files["train"]]]
        test_list: ClassVar = [["test", files["test"]]]
        meta: ClassVar = {"filename": "meta", "key": "fine_label_names", "md5": files["meta"]}

    assert _cifar100_superclasses(Small(tmp_path)) == (0, 0, 1, 1, 2, 2)
    assert _cifar100_superclasses([]) is None


def test_a_folder_without_parts_is_halved_class_by_class(
    digits_train: digits.Split, tmp_path: Path
) -> None:
    import timm
    from safetensors.torch import save_file

    weights, data = tmp_path / "weights.safetensors", tmp_path / "data"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), weights)
    _write_folder(data, digits_train, 60)
    source = open_source("test_resnet", str(data), checkpoint=weights, num_classes=10)
    loaders = [source.loader(part) for part in (source.train, source.test)]
    parts = [[int(label) for _, labels in loader for label in labels] for loader in loaders]
    counts = [torch.bincount(torch.tensor(labels), minlength=10) for labels in parts]
    assert sum(map(len, parts)) == 60
    assert int((counts[0] - counts[1]).abs().max()) <= 1
    assert source.superclass is None
