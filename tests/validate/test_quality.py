"""All measures in one call: right numbers, nothing made up, refusals."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.adapter import attach
from salve_plugin.demo import digits
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.rows import held_out
from salve_plugin.errors import BaseMismatchError, InputError
from salve_plugin.site import Site
from salve_plugin.validate import reconstruction
from salve_plugin.validate.amortization import amortization_gap
from salve_plugin.validate.baselines import CONTROLS
from salve_plugin.validate.dark_matter import dark_matter
from salve_plugin.validate.held_out import HeldOut
from salve_plugin.validate.measures import Latents, Measures, measures
from salve_plugin.validate.monosemanticity import monosemanticity
from salve_plugin.validate.quality import Quality, quality
from salve_plugin.validate.separability import separability
from salve_plugin.validate.splicing import splice_head
from salve_plugin.validate.stability import random_atoms, stability

# As large as the controls' are meant to be: on a head's few directions most of TopK's are dead.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the latents are dead")

FIXTURES = Path(__file__).parent.parent / "fixtures"
WIDTH, LATENTS, K = 12, 12, 4
OPTIONAL = [field.name for field in fields(Measures) if field.default is None]


def permuted(dictionary: Dictionary, order: Tensor) -> Dictionary:
    tensors = dict(dictionary.state_dict())
    for name in ("atoms", "encoder_weight", "encoder_bias"):
        tensors[name] = tensors[name][order]
    return Dictionary(tensors, dictionary._learner, dictionary.site, dictionary.meta)


@pytest.fixture
def planted(make_planted: Callable[..., Any]) -> Any:
    return make_planted()


@pytest.fixture
def recorded(make_recorded: Callable[..., Any], planted: Any) -> Any:
    return make_recorded(planted.x, planted.labels)


@pytest.fixture
def dictionary(recorded: Any, planted: Any) -> Dictionary:
    """A tied TopK dictionary of the planted atoms."""
    offset = torch.full((WIDTH,), 0.5)
    tensors = {
        "atoms": planted.atoms, "encoder_weight": planted.atoms,
        "encoder_bias": -planted.atoms @ offset, "decoder_bias": offset,
    }  # fmt: skip
    return Dictionary(tensors, TopK(k=K), recorded.acts.site, {"initialization": "planted"})


def test_every_number_is_that_of_its_function_on_held_out_rows(
    recorded: Any, dictionary: Dictionary, planted: Any
) -> None:
    apart = held_out(torch.arange(600))
    x, labels = planted.x[apart], planted.labels[apart]
    codes = dictionary.encode(x)
    error = x - dictionary.decode(codes)
    embeddings, offset = planted.codes + 0.1, dictionary.decoder_bias
    turned = permuted(dictionary, torch.arange(LATENTS).flip(0))
    found = quality(
        dictionary, recorded.acts, hooked=recorded.hooked, others=[turned],
        embeddings=embeddings, controls=(),
    )  # fmt: skip
    own = found.dictionary
    train = planted.x[~apart]
    scale = float((train - train.mean(0)).square().sum(1).mean().sqrt())
    on = codes.abs() > 0.01 * scale
    assert own.r2 == pytest.approx(1 - reconstruction.fvu(x, error))
    assert own.fvu == pytest.approx(1 - own.r2)
    assert own.l0 == pytest.approx(float(on.sum(1).double().mean()))
    assert own.dead_share == pytest.approx(float((~on.any(0)).double().mean()))
    assert own.dense_share == pytest.approx(float((on.double().mean(0) > 0.1).double().mean()))
    cosines = (planted.atoms @ planted.atoms.T).abs().fill_diagonal_(0).amax(1)
    assert own.coherence == pytest.approx(float(cosines.max()))
    assert own.nearest_cosine == pytest.approx(float(cosines.mean()))
    scores = monosemanticity(codes, embeddings[apart])
    assert own.monosemanticity == pytest.approx(float(scores.nanmean()))
    assert own.monosemantic_latents == int(scores.isfinite().sum())
    apart_scores = separability(codes, labels)
    assert own.separability == pytest.approx(apart_scores.mean)
    assert own.constant_latents == apart_scores.n_excluded
    dark = dark_matter(train, train - dictionary(train), x, error)
    assert own.error_r2 == pytest.approx(dark.error_r2, abs=1e-6)
    assert own.error_norm_r2 == pytest.approx(dark.norm_r2, abs=1e-6)
    assert own.fvu_nonlinear == pytest.approx(dark.fvu_nonlinear, abs=1e-6)
    gap = amortization_gap(x, codes, planted.atoms, offset, tolerance=0.01 * scale)
    assert own.amortization_gap == pytest.approx(gap, abs=1e-6)
    assert abs(gap) > 1e-3
    weight, bias = recorded.hooked.unembed()
    spliced = splice_head(weight, bias, x, labels, {"it": dictionary}, mean=train.mean(0))
    splice = spliced["it"]
    assert own.cross_entropy == pytest.approx(splice.spliced.cross_entropy)
    assert own.accuracy == pytest.approx(splice.spliced.accuracy)
    assert own.kl == pytest.approx(splice.spliced.kl)
    assert own.ce_recovered == pytest.approx(splice.ce_recovered)
    assert own.accuracy_recovered == pytest.approx(splice.accuracy_recovered)
    assert found.clean == replace(splice.clean)
    assert found.mean_ablation is not None
    assert found.mean_ablation.cross_entropy == pytest.approx(splice.mean.cross_entropy)
    assert own.stability == pytest.approx(1)
    assert own.stable_share == 1
    assert own.signed_cosine is True
    null = stability(planted.atoms, [planted.atoms], signed=True).null_cosine
    assert own.stability_null == pytest.approx(null)
    assert (found.n_rows, found.n_images, found.n_held_out) == (60, 60, 60)
    assert sum(found.histograms["dictionary"]) == LATENTS * (1 - own.dead_share)


def test_the_tolerance_is_relative_to_the_scale_of_the_data() -> None:
    site = Site("s", "", "out", "pooled", 3)
    neurons = Dictionary(
        {"atoms": torch.eye(3), "encoder_weight": torch.eye(3), "encoder_bias": torch.zeros(3),
         "decoder_bias": torch.zeros(3)}, L1(), site,
    )  # fmt: skip
    x = torch.tensor([[0.0, 0.15, 0.0], [0.3, -0.3, 0.0]])
    for scale, l0 in ((20.0, [0, 2]), (10.0, [1, 2]), (40.0, [0, 0])):
        one = torch.arange(2)
        data = HeldOut(x, one, one, one, 2, x.mean(0), scale, x)
        assert Latents.of(neurons, data).l0.tolist() == l0


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=5, derandomize=True)
def test_the_order_of_latents_changes_no_number(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(80, 6, generator=random)
    atoms = random_atoms(9, 6, seed=seed)
    site = Site("s", "", "out", "pooled", 6)
    tensors = {
        "atoms": atoms, "encoder_weight": atoms, "encoder_bias": torch.zeros(9),
        "decoder_bias": torch.zeros(6),
    }  # fmt: skip
    one = Dictionary(tensors, TopK(k=2), site)
    other = permuted(one, torch.randperm(9, generator=random))
    data = HeldOut(
        x=x[:40], images=torch.arange(40), labels=torch.arange(40) % 2, chosen=torch.arange(40),
        n_held_out=40, mean=x.mean(0), scale=2.0, fit_x=x[40:],
    )  # fmt: skip
    embeddings = torch.randn(40, 3, generator=random)
    rows = [
        asdict(measures(each, data, Latents.of(each, data), embeddings=embeddings))
        for each in (one, other)
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)


def test_what_was_not_asked_for_is_none_and_printed_as_a_dash(
    recorded: Any, dictionary: Dictionary
) -> None:
    found = quality(dictionary, recorded.acts, controls=())
    given = {name for name in OPTIONAL if getattr(found.dictionary, name) is not None}
    assert given == {
        "separability", "constant_latents", "error_r2", "error_norm_r2", "fvu_nonlinear",
        "amortization_gap",
    }  # fmt: skip
    assert found.controls == {}
    lines = {line.split("  ")[0]: line.split()[-1] for line in str(found).splitlines() if line}
    assert lines["stability across seeds"] == "-"
    assert lines["cross-entropy recovered"] == "-"
    assert lines["monosemanticity"] == "-"
    assert lines["R²"] == f"{found.dictionary.r2:.3f}"
    assert "Model untouched" not in str(found)
    assert "Stability:" not in str(found)


def test_codes_that_are_no_sums_of_few_atoms_have_no_amortization_gap(recorded: Any) -> None:
    dense = fit(recorded.acts, "l1", l1=0.0, steps=30, n_latents=12, learning_rate=0.01)
    found = quality(dense, recorded.acts, controls=())
    assert found.dictionary.l0 > WIDTH / 2
    assert found.dictionary.amortization_gap is None
    assert found.dictionary.error_r2 is None or found.dictionary.error_r2 > 0.99  # linear encoder


def test_one_class_alone_has_no_separability(
    make_recorded: Callable[..., Any], planted: Any, dictionary: Dictionary
) -> None:
    acts = make_recorded(planted.x, torch.zeros_like(planted.labels)).acts
    found = quality(dictionary, acts, controls=())
    assert (found.dictionary.separability, found.dictionary.constant_latents) == (None, None)


def test_of_several_rows_an_image_counts_by_its_strongest_code(
    make_recorded: Callable[..., Any],
) -> None:
    x = torch.randn(60, 4, 3, generator=torch.Generator().manual_seed(0))
    acts = make_recorded(x, torch.arange(60) % 2).acts
    neurons = Dictionary(
        {"atoms": torch.eye(3), "encoder_weight": torch.eye(3), "encoder_bias": torch.zeros(3),
         "decoder_bias": torch.zeros(3)}, L1(), acts.site,
    )  # fmt: skip
    data = HeldOut.of(acts)
    latents = Latents.of(neurons, data)
    patches = x[data.chosen, 1:]
    strongest = patches.gather(1, patches.abs().argmax(1, keepdim=True))[:, 0]
    assert torch.equal(latents.by_image, strongest)
    assert latents.signed
    assert torch.equal(latents.error, torch.zeros_like(data.x))


def test_splicing_at_a_hidden_site_needs_the_recorded_loader(
    make_recorded: Callable[..., Any], planted: Any
) -> None:
    codes = torch.stack([planted.x, planted.x, planted.x + 0.1], dim=1)
    recorded = make_recorded(codes, planted.labels)
    own = fit(recorded.acts, "topk", k=K, n_latents=16, steps=50, learning_rate=0.01)
    call: dict[str, Any] = {"hooked": recorded.hooked, "controls": ("neurons",)}
    with pytest.raises(InputError, match="pass the recorded `loader` too"):
        quality(own, recorded.acts, **call)
    found = quality(own, recorded.acts, loader=recorded.loader, **call)
    neurons = found.controls["neurons"]
    assert neurons.ce_recovered == pytest.approx(1, abs=1e-6)
    assert neurons.kl == pytest.approx(0, abs=1e-6)
    apart = held_out(torch.arange(600))
    with torch.no_grad():
        mixed = torch.cat([codes[apart, :1], own(codes[apart, 1:])], dim=1)
        logits = recorded.hooked.model.fc(mixed.mean(1))
    expected = torch.nn.functional.cross_entropy(logits.double(), planted.labels[apart])
    assert found.dictionary.cross_entropy == pytest.approx(float(expected), rel=1e-5)
    for other in (recorded.loader[:-1], recorded.loader[1:] + recorded.loader[:1]):
        with pytest.raises(InputError, match="the 600 that were recorded; pass the loader"):
            quality(own, recorded.acts, loader=other, **call)


def test_what_does_not_belong_together_is_refused(
    recorded: Any, dictionary: Dictionary, planted: Any, make_recorded: Callable[..., Any]
) -> None:
    acts = recorded.acts
    elsewhere = Dictionary(
        dictionary.state_dict(), TopK(k=K), replace(acts.site, name="blocks.0.hook_out")
    )
    smaller = fit(acts, "topk", k=2, n_latents=5, steps=5, learning_rate=0.01)
    embeddings = torch.ones(600, 3)
    broken = embeddings.clone()
    broken[5, 1] = torch.nan
    calls: list[tuple[dict[str, Any], str]] = [
        ({"others": [elsewhere]}, "reads site 'blocks.0.hook_out'"),
        ({"others": [dictionary, smaller]}, r"has 12 latents, others have \[5\]"),
        ({"others": [dictionary]}, "the dictionary is among the others"),
        ({"embeddings": embeddings[:60]}, r"shape \(60, 3\) do not fit the recording's 600"),
        ({"embeddings": broken}, "embeddings hold 1 NaN"),
        ({"controls": ["pca", "nmf"]}, r"no controls \['nmf'\]; choose from"),
    ]
    for arguments, complaint in calls:
        with pytest.raises(InputError, match=complaint):
            quality(dictionary, acts, **arguments)
    with pytest.raises(InputError, match=r"reads site 'blocks\.0\.hook_out'"):
        quality(elsewhere, acts)
    few = make_recorded(planted.x[:8], planted.labels[:8]).acts
    with pytest.raises(InputError, match="none of the recording's 8 images is held out"):
        quality(dictionary, few)
    other = make_recorded(planted.x[:, None].repeat(1, 2, 1), planted.labels).hooked
    other.sites = {"body.hook_out": other.sites["body.hook_out"]}
    with pytest.raises(BaseMismatchError, match=r"no site 'unembed\.hook_in' as it was recorded"):
        quality(dictionary, acts, hooked=other, controls=())


@pytest.fixture(scope="module")
def digits_quality(digits_train: digits.Split) -> Quality:
    """Two TopK runs on the trained ResNet's head inputs; images' pixels embed the images."""
    hooked = attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    acts = record(hooked, list(digits_train.batches()), classes=digits.CLASSES, progress=False)
    runs = [
        fit(acts, "topk", k=8, n_latents=64, steps=150, seed=seed, learning_rate=0.01)
        for seed in (0, 1)
    ]
    pixels = torch.as_tensor(digits_train.images).flatten(1)
    return quality(runs[0], acts, hooked=hooked, others=runs[1:], embeddings=pixels)


def test_a_dictionary_of_a_real_network_beats_untrained_controls_at_equal_l0(
    digits_quality: Quality,
) -> None:
    own, controls = digits_quality.dictionary, digits_quality.controls
    assert tuple(controls) == CONTROLS
    assert own.l0 == controls["frozen"].l0 == 8
    for name in ("random", "frozen", "kmeans"):
        assert own.r2 > controls[name].r2
    assert own.kl is not None
    assert own.ce_recovered is not None
    assert own.ce_recovered > 0.95
    for name in ("random", "frozen"):
        kl = controls[name].kl
        assert kl is not None
        assert own.kl < kl
    assert own.stability is not None
    assert own.stability_null is not None
    assert own.stability > own.stability_null + 0.1
    neurons = controls["neurons"]
    assert neurons.r2 == pytest.approx(1)
    assert neurons.ce_recovered == pytest.approx(1)
    assert neurons.kl == pytest.approx(0, abs=1e-9)
    assert None not in asdict(own).values()


def test_the_table_is_aligned_and_says_what_it_rests_on(digits_quality: Quality) -> None:
    text = str(digits_quality)
    head, _, notes = text.partition("\n\n")
    lines = head.splitlines()
    assert lines[0].split() == ["dictionary", *CONTROLS]
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 1 + len(fields(Measures))
    assert "144 rows of 144 images held out from training" in notes
    assert "|z| above 0.01" in notes
    assert "atoms started from: rows, rows" in notes
    assert "site at its mean: cross-entropy" in notes
    assert "-0.000" not in text


def test_numbers_of_a_dense_dictionary_with_twins_are_explained(digits_quality: Quality) -> None:
    sparse = replace(digits_quality.dictionary, coherence=0.5, dense_share=0.1, separability=0.4)
    random = replace(digits_quality.controls["random"], separability=0.2)

    def text(**changed: Any) -> str:
        rows = {"dictionary": replace(sparse, **changed), "random": random}
        return replace(digits_quality, rows=rows).table()

    assert "twins" in text(coherence=0.999)
    assert "100% of the latents are active in more than a tenth" in text(dense_share=1.0)
    assert "less well than latents of random atoms" in text(separability=0.1)
    unremarkable = text() + text(separability=None)
    for word in ("twins", "more than a tenth", "less well"):
        assert word not in unremarkable


def test_json_has_plain_values_only(digits_quality: Quality) -> None:
    values = json.loads(json.dumps(digits_quality.to_json(), allow_nan=False))
    assert values["rows"]["dictionary"]["r2"] == digits_quality.dictionary.r2
    assert values["rows"]["pca"] == asdict(digits_quality.controls["pca"])
    assert values["initializations"] == ["rows", "rows"]
    assert sum(values["histograms"]["neurons"]) <= 128


def test_one_figure_draws_every_dictionary(digits_quality: Quality, tmp_path: Path) -> None:
    drawn = digits_quality.figure(tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    histogram, *bars = drawn.axes
    legend = histogram.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["dictionary", *CONTROLS]
    titles = [axes.get_title() for axes in bars]
    assert titles[:3] == ["R²", "L0", "cross-entropy recovered"]
    r2 = [bar.get_width() for bar in bars[0].patches]  # type: ignore[attr-defined] # bars are rectangles
    assert r2 == pytest.approx([row.r2 for row in digits_quality.rows.values()])
    with pytest.raises(InputError, match=r"cannot draw .*quality\.xyz"):
        digits_quality.figure(tmp_path / "quality.xyz")


@runtime_checkable
class SAEInterface(Protocol):
    """What visaebench 0.1.0 (core/types.py) asks of an autoencoder: these two methods."""

    def encode(self, x: Tensor) -> Tensor:
        """From activations (batch, width) to codes (batch, latents)."""

    def decode(self, z: Tensor) -> Tensor:
        """Back again."""


def test_dictionaries_have_the_interface_of_visaebench(
    dictionary: Dictionary, planted: Any
) -> None:
    assert isinstance(dictionary, SAEInterface)
    codes = dictionary.encode(planted.x[:7])
    back = dictionary.decode(codes)
    assert (codes.shape, back.shape) == ((7, LATENTS), (7, WIDTH))
    codes.cpu().numpy()  # its metrics take codes as arrays, without detaching them
    assert not back.requires_grad


def test_another_default_number_type_is_refused(recorded: Any, dictionary: Dictionary) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(InputError, match="measured in float32; call torch"):
            quality(dictionary, recorded.acts, controls=())
    finally:
        torch.set_default_dtype(torch.float32)
