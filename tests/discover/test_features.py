"""Class-conditional means, the paper's dominant latent, and the selection score."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import profile
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.selection_score import selection_scores
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError
from salve_plugin.site import Site

MakeRecording = Callable[..., Activations]


def neurons(width: int) -> Dictionary:
    """Return the dictionary whose latents are the features themselves."""
    eye, zero = torch.eye(width), torch.zeros(width)
    tensors = {"atoms": eye, "encoder_weight": eye, "encoder_bias": zero, "decoder_bias": zero}
    return Dictionary(tensors, L1(), Site("unembed.hook_in", "fc", "in", "pooled", width))


def brute_force_scores(means: Tensor) -> Tensor:
    """Return the score as its definition says, one class and latent at a time."""
    classes, latents = means.shape
    scores = torch.zeros_like(means)
    for c in range(classes):
        others = torch.stack([means[k] for k in range(classes) if k != c])
        apart = [abs(means[c, i] - others[:, i].mean()) for i in range(latents)]
        spread = [others[:, i].std(correction=0) for i in range(latents)]
        for i in range(latents):
            scores[c, i] = apart[i] / sum(apart) - spread[i] / sum(spread)
    return scores


def random_means(seed: int, classes: int, latents: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(classes, latents, generator=random, dtype=torch.float64)


shapes = {"seed": st.integers(0, 10**6), "classes": st.integers(3, 6), "latents": st.integers(2, 6)}


@given(**shapes)
@settings(deadline=None, max_examples=25, derandomize=True)
def test_scores_agree_with_their_definition(seed: int, classes: int, latents: int) -> None:
    means = random_means(seed, classes, latents)
    scores = selection_scores(means, torch.ones(classes, dtype=torch.int64))
    torch.testing.assert_close(scores, brute_force_scores(means), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(scores.sum(1), torch.zeros(classes).double(), rtol=0, atol=1e-8)


@given(**shapes, offset=st.floats(-1e3, 1e3))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_a_latent_that_is_equal_in_all_classes_scores_zero(
    seed: int, classes: int, latents: int, offset: float
) -> None:
    """Also beside others, and its size changes nothing: the plain share of |mean| fails here."""
    means = random_means(seed, classes, latents)
    means[:, 0] = offset
    scores = selection_scores(means, torch.ones(classes, dtype=torch.int64))
    assert torch.equal(scores[:, 0], torch.zeros(classes).double())


@given(**shapes, size=st.floats(0.1, 10) | st.floats(-10, -0.1))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_a_latent_exclusive_to_a_class_is_its_first(
    seed: int, classes: int, latents: int, size: float
) -> None:
    """Whatever its sign, and although the other latents separate the other classes."""
    means = random_means(seed, classes, latents) * 100
    means[0] = means[1:].mean(0)  # class 0 differs from the others' mean in nothing else
    means[:, 1] = 7.0
    means[0, 1] += size
    scores = selection_scores(means, torch.ones(classes, dtype=torch.int64))
    assert int(scores[0].argmax()) == 1


def test_scores_sum_to_one_if_the_other_classes_do_not_differ() -> None:
    """Rounding of equal means must not pass for a difference."""
    means = torch.tensor([[0.3, 1.7]] + 6 * [[0.1, 0.7]], dtype=torch.float64)
    scores = selection_scores(means, torch.ones(7, dtype=torch.int64))
    torch.testing.assert_close(scores[0], torch.tensor([1 / 6, 5 / 6]).double())


def test_the_dominant_latent_can_be_shared_by_all_classes_but_the_ranked_one_is_not(
    make_recording: MakeRecording,
) -> None:
    labels = torch.arange(30) % 3
    x = 0.5 * torch.nn.functional.one_hot(labels, 4).float()
    x[:, 3] = 9.0
    features = profile(neurons(4), make_recording(x, labels, classes=("ant", "bee", "cat")))
    assert [features.dominant(k) for k in range(3)] == [3, 3, 3]
    assert [features.ranked(name, 1) for name in ("ant", "bee", "cat")] == [[0], [1], [2]]
    assert len(features.ranked("ant", 100)) == 4


def test_means_and_counts_agree_with_a_brute_force_average(make_recording: MakeRecording) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 6, generator=random)
    labels = torch.randint(5, (5000,), generator=random)
    dictionary = fit(x, "l1", n_latents=3, steps=20)
    acts = make_recording(x, labels, shard_rows=700)
    dictionary.site = acts.site
    features = profile(dictionary, acts)
    codes = x.double() @ dictionary.encoder_weight.double().T + dictionary.encoder_bias.double()
    for label in range(5):
        expected = codes[labels == label].mean(0)
        torch.testing.assert_close(features.means[label], expected, rtol=1e-5, atol=1e-6)
        assert features.counts[label] == (labels == label).sum()
        assert features.dominant(label) == int(expected.abs().argmax())


def test_an_unknown_class_is_refused_with_the_names_that_exist(
    make_recording: MakeRecording,
) -> None:
    x, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 3, 3])
    features = profile(neurons(4), make_recording(x, labels, classes=("ant", "bee", "cat", "dog")))
    assert features.class_index("dog") == 3
    with pytest.raises(InputError, match=r"no class named 'cow'.*\['ant', 'bee', 'cat', 'dog'\]"):
        features.dominant("cow")
    with pytest.raises(InputError, match="no class 4; there are 4, from 0 to 3"):
        features.dominant(4)
    with pytest.raises(InputError, match="no class -1"):
        features.ranked(-1)
    with pytest.raises(InputError, match=r"class 2 \('cat'\) has no example"):
        features.dominant("cat")
    with pytest.raises(InputError, match="at least 1 was expected"):
        features.ranked("ant", 0)


@pytest.mark.usefixtures("untyped")
def test_a_class_is_an_integer_of_any_kind_or_a_name(make_recording: MakeRecording) -> None:
    features = profile(neurons(4), make_recording(torch.randn(6, 4), torch.arange(6) % 2))
    integers: list[Any] = [np.int64(1), np.array(1), torch.tensor(1)]
    for integer in integers:
        assert features.ranked(integer) == features.ranked(1)
        assert features.dominant(integer) == features.dominant(1)
    others: list[Any] = [1.0, None, True, [1], torch.tensor([1]), torch.tensor(1.0)]
    for other in others:
        for asked in (features.ranked, features.dominant):
            with pytest.raises(InputError, match=r"a class is .*; expected an integer"):
                asked(other)


def test_without_class_names_only_indices_are_known(make_recording: MakeRecording) -> None:
    features = profile(neurons(4), make_recording(torch.randn(6, 4), torch.arange(6) % 2))
    with pytest.raises(InputError, match="has no class names: give an index below 2"):
        features.class_index("ant")


def test_a_dictionary_of_another_site_is_refused(make_recording: MakeRecording) -> None:
    with pytest.raises(InputError, match="reads site 'rows'"):
        profile(
            fit(torch.randn(50, 4), "l1", steps=1),
            make_recording(torch.randn(6, 4), torch.arange(6)),
        )


def auc(scores: Tensor, positive: Tensor) -> float:
    """Return the share of (positive, negative) pairs in the right order; ties count half."""
    above = scores[positive][:, None] - scores[~positive][None, :]
    return float((above > 0).double().mean() + 0.5 * (above == 0).double().mean())


def test_the_selected_latents_tell_the_digits_apart(digits_recording: Activations) -> None:
    """Each class has a latent of its own, and it ranks the images one against the rest."""
    dictionary = fit(digits_recording, "l1")
    features = profile(dictionary, digits_recording)
    chosen = [features.ranked(label, 1)[0] for label in range(10)]
    assert len(set(chosen)) == 10
    assert len({features.dominant(label) for label in range(10)}) == 10
    codes, labels = dictionary.encode(digits_recording.tensor()), digits_recording.labels()
    for label, latent in enumerate(chosen):
        sign = features.means[label, latent] - features.means[:, latent].mean()
        assert auc(codes[:, latent] * sign.sign(), labels == label) > 0.98


def test_a_shift_counts_in_units_of_its_spread(make_recording: MakeRecording) -> None:
    """A latent that shifts more but varies far more tells the class less."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    x = torch.randn(600, 3, generator=draw)
    x[:, 0] += 2 * (labels == 0)
    x[:, 1] = 20 * x[:, 1] + 6 * (labels == 0)
    features = profile(neurons(3), make_recording(x, labels))
    assert float(features.means[0, 1]) > float(features.means[0, 0])
    assert features.ranked(0, 1) == [0]
    expected = torch.stack([x[labels == k].var(0, correction=0) for k in range(3)]).mean(0).sqrt()
    torch.testing.assert_close(features.spreads, expected.double(), rtol=1e-5, atol=0)


def test_an_attribute_is_profiled_beside_the_classes(make_recording: MakeRecording) -> None:
    labels, has = torch.arange(40) % 4, (torch.arange(40) // 4) % 2
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] += 5 * has
    acts = make_recording(x, labels, classes=("ant", "bee", "cat", "dog"))
    by_attribute = profile(neurons(3), acts, attribute=has, names=("without", "with"))
    assert by_attribute.of_attribute
    assert by_attribute.ranked("with", 1) == [2]
    torch.testing.assert_close(by_attribute.means[1], x[has == 1].double().mean(0))
    short = profile(neurons(3), acts, attribute=has.to(torch.uint16))
    assert torch.equal(short.means, by_attribute.means)
    assert not profile(neurons(3), acts).of_attribute
    with pytest.raises(InputError, match="recording's 40 images"):
        profile(neurons(3), acts, attribute=has[:39])
    with pytest.raises(InputError, match="names for 2 values"):
        profile(neurons(3), acts, attribute=has, names=("only",))


@pytest.mark.usefixtures("untyped")
def test_an_attribute_of_words_is_refused(make_recording: MakeRecording) -> None:
    acts = make_recording(torch.randn(4, 3), torch.arange(4) % 2)
    with pytest.raises(InputError, match=r"not numbers .* expected an index .* names="):
        profile(neurons(3), acts, attribute=["dry", "wet", "dry", "wet"])  # type: ignore[list-item]


def test_a_large_offset_costs_the_spread_no_digits(make_recording: MakeRecording) -> None:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + 4096
    features = profile(neurons(2), make_recording(x, torch.arange(60) % 2))
    expected = torch.stack([x[k::2].double().var(0, correction=0) for k in range(2)]).mean(0)
    torch.testing.assert_close(features.spreads, expected.sqrt(), rtol=1e-6, atol=0)
