"""The atlas of a real study: what its files hold, and what they refuse."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
from small_study import NAMES, Numbers, Small
from torch.utils.data import DataLoader, Subset

import salve_plugin as salve
from salve_plugin.control.evaluate import evaluate_head
from salve_plugin.control.operators.gate import scaled_weight
from salve_plugin.demo import digits
from salve_plugin.discover.selection_score import selection_scores
from salve_plugin.errors import BaseMismatchError, InputError
from salve_plugin.report import bench as bench_module
from salve_plugin.report import tables
from salve_plugin.report.bench import Bench
from salve_plugin.report.front import cut
from salve_plugin.validate.crops import pointed_at

TYPES = {"i8": "<i1", "i32": "<i4", "f32": "<f4", "f64": "<f8"}


def revived(value: Any) -> Any:
    """Return what a page makes of a piece of data."""
    if isinstance(value, list):
        return [revived(each) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"type", "data"}:
        return np.frombuffer(base64.b64decode(value["data"]), TYPES[value["type"]])
    return {name: revived(each) for name, each in value.items()}


def piece(folder: Path, key: str) -> Any:
    text = (folder / "data" / f"{key}.js").read_text(encoding="ascii")
    start = f"atlas.provide({json.dumps(key)},"
    assert text.startswith(start)
    return revived(json.loads(text.removeprefix(start).removesuffix(");\n")))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def folder(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("atlas") / "here"
    page = salve.atlas(
        small.hooked, small.dictionary, small.acts, place, images=small.images, mapped=10, top=6
    )
    assert page == place / "index.html"
    return place


def test_the_same_study_gives_the_same_bytes(small: Small, folder: Path, tmp_path: Path) -> None:
    salve.atlas(
        small.hooked, small.dictionary, small.acts, tmp_path, images=small.images, mapped=10, top=6
    )
    assert contents(tmp_path) == contents(folder)


def test_the_index_says_what_was_measured(small: Small, folder: Path) -> None:
    index = piece(folder, "index")
    weight, bias = small.hooked.unembed()
    before = evaluate_head(weight, bias, small.acts)
    assert index["classes"]["names"] == list(NAMES)
    assert index["classes"]["overall"] == before.overall
    np.testing.assert_allclose(index["classes"]["accuracy"], before.accuracy.float())
    features = salve.profile(small.dictionary, small.acts)
    dominant = [features.dominant(label) for label in range(10)]
    assert index["classes"]["dominant"].tolist() == dominant
    assert index["about"]["files"][0].endswith("<b>.png")
    assert len(index["about"]["images"]) == len(set(index["about"]["images"].tolist()))


def test_a_class_has_its_critical_strengths_and_its_row_of_the_confusion(
    small: Small, folder: Path
) -> None:
    label = 3
    entry = piece(folder, "classes/0")["classes"][label]
    features = salve.profile(small.dictionary, small.acts)
    for rows, name in (([label], "own"), (None, "all")):
        edit = salve.suppress(
            small.hooked, small.dictionary, latent=features.dominant(label), strength=1.0, rows=rows
        )
        crit = salve.alpha_crit(small.hooked, edit, small.acts, target="flip", classes=[label])
        assert entry["crit"][name].tolist() == crit.values.sort().values.tolist()
    weight, bias = small.hooked.unembed()
    row = evaluate_head(weight, bias, small.acts).confusion[label]
    assert dict(zip(entry["predicted"]["classes"], entry["predicted"]["images"], strict=True)) == {
        int(each): int(row[each]) for each in row.nonzero()[:, 0]
    }
    assert entry["ranked"] == features.ranked(label, 12)
    after = entry["after"]
    edit = salve.suppress(
        small.hooked, small.dictionary, latent=features.dominant(label),
        strength=after["strength"], rows=[label],
    )  # fmt: skip
    with edit.applied(small.hooked):
        confusion = evaluate_head(*small.hooked.unembed(), small.acts).confusion[label]
    assert dict(zip(after["classes"], after["images"], strict=True)) == {
        int(each): int(confusion[each]) for each in confusion.nonzero()[:, 0]
    }
    finite = entry["crit"]["own"][np.isfinite(entry["crit"]["own"])]
    assert after["strength"] == pytest.approx(finite.max(), rel=1e-5)


def test_a_latent_that_is_alike_in_all_classes_is_specific_to_none() -> None:
    means = torch.tensor([[0, 0.5, 0, 1], [0, 0.5, 2, 0], [0, 0.5, 0, 0]]).double()
    counts = torch.tensor([4, 4, 4])
    scores = selection_scores(means, counts)
    features = salve.Features(means, torch.ones(4).double(), counts, None, scores)
    assert tables.strongest_classes(features).tolist() == [-1, -1, 1, 0]


def test_a_class_with_a_blank_name_is_shown_by_its_number(small: Small, tmp_path: Path) -> None:
    names = ["", *NAMES[1:5], " \n", *NAMES[6:]]
    images = Numbers(digits.Split(small.images.images[:40], small.images.labels[:40]), names)
    loader = DataLoader(images, batch_size=40)
    acts = salve.record(small.hooked, loader, folder=tmp_path / "acts", progress=False)
    salve.atlas(small.hooked, small.dictionary, acts, tmp_path / "atlas")
    shown = piece(tmp_path / "atlas", "index")["classes"]["names"]
    assert shown == ["0", *NAMES[1:5], "5", *NAMES[6:]]


def test_a_latent_has_a_gallery_with_maps(small: Small, folder: Path) -> None:
    features = salve.profile(small.dictionary, small.acts)
    latent = features.dominant(0)
    entry = piece(folder, f"latents/{latent // 64}")["latents"][latent % 64]
    images = entry["images"].tolist()
    fam = salve.LayerGradFam.of(small.hooked, small.dictionary)
    inputs = torch.stack([small.images[image][0] for image in images])
    heats = fam.attribute(inputs, target=latent)[:, 0]
    maps = entry["maps"]
    assert (maps["height"], maps["width"]) == tuple(heats.shape[1:])
    values = torch.from_numpy(maps["values"].astype(np.float32)).view_as(heats) * maps["unit"]
    sign = -1 if entry["codes"][0] < 0 else 1
    torch.testing.assert_close(values * sign, heats, rtol=0, atol=0.51 * maps["unit"])
    crops = maps["crops"].reshape(len(images), 5)
    _, height, width = inputs.shape[1:]
    for (left, top, across, down, form), heat in zip(crops.tolist(), heats * sign, strict=True):
        box = pointed_at(heat, (height, width))
        assert box is not None
        edges = (left * width, top * height, (left + across) * width, (top + down) * height)
        np.testing.assert_allclose(edges, (box.left, box.top, box.right, box.bottom), rtol=1e-5)
        np.testing.assert_allclose(form, across * width / (down * height), rtol=1e-5)
    others = (features.means.sum(0) - features.means) / 9
    shift = (features.means - others)[:, latent] / features.spreads[latent]
    np.testing.assert_allclose(
        entry["profile"]["shifts"], shift[entry["profile"]["classes"].tolist()], rtol=1e-5
    )


def test_the_bench_has_what_evaluation_needs(small: Small, folder: Path) -> None:
    head, index = piece(folder, "bench/head"), piece(folder, "index")
    x = torch.tensor(piece(folder, "bench/features/0")["x"]).view(300, -1)
    weight = torch.tensor(head["weight"]).view(10, -1)
    direction = small.dictionary.atoms[5]
    atoms = piece(folder, "atoms/0")["atoms"].reshape(-1, x.shape[1])
    assert np.array_equal(atoms[5], direction)
    labels = torch.tensor(index["bench"]["labels"]).long()
    edited = scaled_weight(weight, direction, 4.0, rows=[2, 3])
    after = evaluate_head(edited, torch.tensor(head["bias"]), (x, labels))
    edit = salve.suppress(small.hooked, small.dictionary, latent=5, strength=4.0, rows=[2, 3])
    model = edit.edited(small.hooked.model)
    whole = salve.evaluate(model, [(small.images.images, small.images.labels)])
    assert torch.equal(after.confusion, whole.confusion)
    top = {name: torch.tensor(each) for name, each in piece(folder, "bench/top").items()}
    logits = torch.addmm(torch.tensor(head["bias"]), x, weight.T)
    order = top["classes"].view(300, 10).long()
    assert torch.equal(top["logits"].view(300, 10), logits.gather(1, order))
    assert torch.equal(order[:, 0], logits.argmax(1))
    assert bool((order.sort(1).values == torch.arange(10)).all())


def test_steps_are_computed_where_a_page_could_not_follow(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "LIVE", 0)
    salve.atlas(small.hooked, small.dictionary, small.acts, tmp_path, stepped=2)
    index = piece(tmp_path, "index")
    assert not index["bench"]["live"]
    assert len(index["bench"]["steps"]) == 2
    latent = index["bench"]["steps"][0]
    steps = piece(tmp_path, f"steps/{latent}")
    strength = 0.3 * steps["limit"]
    bench = Bench.of(small.hooked, small.dictionary, small.acts, 300)
    predicted = bench.logits().argmax(1)
    for image, at, label in zip(steps["images"], steps["strengths"], steps["classes"], strict=True):
        if at <= strength:
            predicted[image] = int(label)
    edited = scaled_weight(bench.weight, small.dictionary.atoms[latent], strength)
    assert torch.equal(predicted, torch.addmm(bench.bias, bench.x, edited.T).argmax(1))


def test_images_of_the_bench_are_evenly_chosen_from_every_class(small: Small) -> None:
    bench = Bench.of(small.hooked, small.dictionary, small.acts, 100)
    labels = small.acts.image_labels().long()
    assert torch.equal(bench.x, small.acts.tensor()[bench.images])
    assert torch.equal(bench.labels, labels[bench.images])
    assert bool((bench.images.diff() > 0).all())
    shares = torch.bincount(bench.labels) / torch.bincount(labels)
    assert float((shares - 1 / 3).abs().max()) < 0.06


def test_without_the_heads_input_there_is_no_bench_but_all_else(
    small: Small, tmp_path: Path
) -> None:
    batches = [(small.images.images, small.images.labels)]
    acts = salve.record(small.hooked, batches, "blocks.3.hook_resid_post", progress=False)
    dictionary = salve.fit(acts, "itda", n_latents=16)
    data_set = list(zip(small.images.images, small.images.labels, strict=True))
    salve.atlas(small.hooked, dictionary, acts, tmp_path, images=data_set, mapped=2)
    index = piece(tmp_path, "index")
    assert index["bench"] is None
    assert "this recording is of 'blocks.3.hook_resid_post'" in index["bench_missing"]
    assert not (tmp_path / "data" / "bench").exists()
    assert len(index["about"]["images"])


def test_a_head_with_edits_on_it_has_no_bench_but_all_else(small: Small, tmp_path: Path) -> None:
    hooked, acts, dictionary = small.hooked, small.acts, small.dictionary
    with salve.zero_row(hooked, 3).applied(hooked):
        salve.atlas(hooked, dictionary, acts, tmp_path, mapped=0)
    index = piece(tmp_path, "index")
    assert index["bench"] is None
    assert "edits that are on it" in index["bench_missing"]


def test_other_images_than_the_recorded_ones_are_refused(small: Small, tmp_path: Path) -> None:
    def make(images: object) -> None:
        folder = tmp_path / "atlas"
        salve.atlas(small.hooked, small.dictionary, small.acts, folder, images=images)

    with pytest.raises(InputError, match="images has 10 items, the recording 300"):
        make(Subset(small.images, range(10)))
    with pytest.raises(InputError, match=r"has label \d, but \d was recorded in its place"):
        make(Subset(small.images, list(range(299, -1, -1))))
    with pytest.raises(InputError, match="images are a generator; expected a data set"):
        make(image for image in small.images.images)
    assert not (tmp_path / "atlas").exists()


def test_a_model_that_was_edited_since_is_refused(small: Small, tmp_path: Path) -> None:
    other = salve.Dictionary(
        small.dictionary.tensors, small.dictionary._learner, small.dictionary.site,
        {**small.dictionary.meta, "network_sha256": "0" * 64},
    )  # fmt: skip
    with pytest.raises(BaseMismatchError):
        salve.atlas(small.hooked, other, small.acts, tmp_path)
    with pytest.raises(InputError, match="maximized is -1; at least 0 was expected"):
        salve.atlas(small.hooked, small.dictionary, small.acts, tmp_path, maximized=-1)
    with pytest.raises(InputError, match="top is 0; at least 1 was expected"):
        salve.atlas(small.hooked, small.dictionary, small.acts, tmp_path, top=0)


def test_a_latent_has_its_evidence_beside_chance(small: Small, tmp_path: Path) -> None:
    evidence = salve.evidence(small.hooked, small.dictionary, small.acts, permutations=20)
    salve.atlas(small.hooked, small.dictionary, small.acts, tmp_path, evidence=evidence)
    shown = piece(tmp_path, "latents/0")["evidence"]
    for name in ("auc", "auc_null", "auc_p_all", "precision", "effect", "explained_null", "phi"):
        np.testing.assert_allclose(shown[name], getattr(evidence, name).float(), err_msg=name)
    assert shown["label"].tolist() == evidence.label.tolist()
    np.testing.assert_allclose(shown["curve"].reshape(-1, 5), evidence.curve.float())
    index = piece(tmp_path, "index")["evidence"]
    assert (index["k"], index["images"], index["permutations"]) == (10, 300, 20)
    np.testing.assert_allclose(index["auc"], evidence.auc.float())


@pytest.mark.usefixtures("untyped")
def test_arguments_that_are_none_are_refused_and_nothing_is_written(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = (small.hooked, small.dictionary, small.acts)
    quality: Any = salve.quality(small.dictionary, small.acts, controls=())
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"folder": ""}, '"" is no path'), ({"folder": None}, "None is a NoneType; a path"),
        ({"top": 2.5}, "top is 2.5; expected an integer"), ({"mapped": -1}, "mapped is -1; at"),
        ({"maximized": "3"}, "maximized is '3'; expected an integer"),
        ({"maximized": [0, -1]}, "maximized is -1; at least 0"),
        ({"evidence": quality}, r"evidence is <Quality.*; pass what salve.evidence\(...\) returns"),
    ]  # fmt: skip
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            salve.atlas(*parts, **({"folder": tmp_path / "atlas"} | arguments))
    assert not list(tmp_path.iterdir())


def test_what_was_measured_of_another_dictionary_is_refused(small: Small, tmp_path: Path) -> None:
    parts = (small.hooked, small.dictionary, small.acts)
    other = salve.fit(small.acts, "l1", n_latents=small.dictionary.n_latents, steps=1)
    evidence = salve.evidence(small.hooked, other, small.acts, permutations=1)
    quality = salve.quality(other, small.acts, controls=())
    of = f"is of dictionary {other.digest[:12]}, the one given is {small.dictionary.digest[:12]}"
    with pytest.raises(InputError, match=f"the evidence {of}: pass salve.evidence"):
        salve.atlas(*parts, tmp_path / "atlas", evidence=evidence)
    with pytest.raises(InputError, match=f"the quality {of}: pass salve.quality"):
        salve.atlas(*parts, tmp_path / "atlas", quality=quality)
    with pytest.raises(InputError, match="the evidence is of dictionary"):
        salve.latent_card(*parts, 0, images=small.images, evidence=evidence)
    assert not (tmp_path / "atlas").exists()


@pytest.mark.slow
def test_an_image_is_made_for_the_latents_that_classes_depend_on_most(
    small: Small, tmp_path: Path
) -> None:
    salve.atlas(small.hooked, small.dictionary, small.acts, tmp_path, maximized=1)
    entries = piece(tmp_path, "latents/0")["latents"]
    (latent,) = (at for at, entry in enumerate(entries) if "made" in entry)
    features = salve.profile(small.dictionary, small.acts)
    assert latent in {features.dominant(label) for label in range(10)}
    made = entries[latent]["made"]
    sign: Literal[1, -1] = 1 if made["sign"] > 0 else -1
    best = salve.maximize(small.hooked, small.dictionary, latent, sign=sign)
    assert made["value"] == best.activation
    assert made["noise"] == float(best.noise.mean())
    assert made["source"].startswith("data:image/jpeg;base64,")
    assert abs(made["value"] - made["noise"]) > 3 * made["spread"]


def test_what_reads_latents_and_what_masks_a_class_is_what_their_edits_have(
    small: Small, folder: Path
) -> None:
    index = piece(folder, "index")["bench"]
    assert sorted(index["folded"]) == list(range(small.dictionary.n_latents))
    folds = piece(folder, "folds/0")
    for latent in (0, 7):
        concept = salve.latent_concept(small.dictionary, small.acts, latent)
        operator = salve.erase(small.hooked, concept, "fold").operator
        at = index["folded"].index(latent)
        read = folds["reads"].reshape(len(index["folded"]), -1)[at]
        np.testing.assert_allclose(read, operator.tensors["read"][:, 0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(folds["offsets"][at], operator.tensors["offset"][0], rtol=1e-9)
    masks = piece(folder, "bench/mask")
    for label in (0, 4):
        edit = salve.mask(small.hooked, label, small.acts)
        assert masks["notes"][label] == edit.provenance.note
        assert -masks["lowering"][label] == float(edit.tensors["shift"][0])
        assert json.loads(masks["base"]) == edit.to_json()["base"]


def test_dictionaries_stand_beside_each_other_by_r2_and_l0(small: Small, tmp_path: Path) -> None:
    trials = salve.sweep(small.acts, "itda", {"n_latents": [8, 16]})
    quality = salve.quality(small.dictionary, small.acts, controls=("random",))
    salve.atlas(
        small.hooked, small.dictionary, small.acts, tmp_path, quality=quality, trials=trials
    )
    front = piece(tmp_path, "index")["front"]
    assert [point["kind"] for point in front["points"][:2]] == ["own", "control"]
    shown = [(each["name"], each["r2"], each["l0"]) for each in front["points"][2:]]
    named = [f"itda n_latents={trial.arguments['n_latents']}" for trial in trials]
    assert shown == [(name, t.r2, t.l0) for name, t in zip(named, trials, strict=True)]
    assert list(front["l0"]) == sorted(front["l0"])
    # With all codes left it is the dictionary as its quality measures it.
    assert front["r2"][-1] == pytest.approx(quality.dictionary.r2, rel=1e-5)
    x = small.acts.tensor()[:5]
    codes = small.dictionary.encode(x)
    kept, explained = cut(small.dictionary, x)
    one = torch.zeros_like(codes).scatter_(
        1, codes.abs().argmax(1, keepdim=True), codes.gather(1, codes.abs().argmax(1, keepdim=True))
    )
    error = (x - small.dictionary.decode(one)).double().square().sum()
    spread = (x - x.mean(0)).double().square().sum()
    assert kept[0] == 1
    assert explained[0] == pytest.approx(float(1 - error / spread))


def test_quality_is_shown_beside_its_controls(small: Small, tmp_path: Path) -> None:
    measured = salve.quality(
        small.dictionary, small.acts, hooked=small.hooked, controls=("random", "pca")
    )
    salve.atlas(small.hooked, small.dictionary, small.acts, tmp_path, quality=measured)
    table = piece(tmp_path, "index")["quality"]
    assert table["columns"] == ["dictionary", "random", "pca"]
    values = next(row["values"] for row in table["rows"] if row["name"] == "R²")
    assert values == [row.r2 for row in replace(measured).rows.values()]


def test_a_single_logit_has_two_mirrored_rows_and_edits_of_all_rows(tmp_path: Path) -> None:
    images = torch.randn(60, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hooked = salve.attach(timm.create_model("test_resnet", num_classes=1).eval())
    labels = torch.arange(60) % 2
    acts = salve.record(hooked, [(images, labels)], "unembed.hook_in", progress=False)
    dictionary = salve.fit(acts, "itda", n_latents=8)
    salve.atlas(hooked, dictionary, acts, tmp_path)
    index, head = piece(tmp_path, "index"), piece(tmp_path, "bench/head")
    assert index["bench"]["binary"]
    weight = head["weight"].reshape(2, -1)
    assert np.array_equal(weight[0], -weight[1])
    edit = salve.suppress(hooked, dictionary, latent=2, strength=6.0)
    after = salve.evaluate(edit.edited(hooked.model), [(images, labels)])
    edited = scaled_weight(torch.tensor(weight), dictionary.atoms[2], 6.0)
    recounted = evaluate_head(edited, torch.tensor(head["bias"]), acts)
    assert torch.equal(recounted.confusion, after.confusion)
    entry = piece(tmp_path, "classes/0")["classes"][1]
    assert entry["crit"]["own"].tolist() == entry["crit"]["all"].tolist()
