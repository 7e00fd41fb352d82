"""Two recordings: planted differences and strangers are seen, equal ones are not."""

from typing import Any

import pytest
import torch
from torch import Tensor

import salve_plugin as salve
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.errors import InputError
from salve_plugin.validate.evidence import differing


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def recorder(make_recorded: Any) -> Any:
    """Record rows of one network, and give the dictionary of its plain features."""
    labels = torch.arange(40) % 2
    first = make_recorded(draw(40, 6), labels)

    def again(x: Tensor, name: str) -> Any:
        folder = first.acts.folder.parent / name
        loader = [(x, torch.arange(len(x)) % 2)]
        return salve.record(first.hooked, loader, "unembed.hook_in", folder=folder, progress=False)

    tensors = {
        "atoms": torch.eye(6), "encoder_weight": torch.eye(6),
        "encoder_bias": torch.zeros(6), "decoder_bias": torch.zeros(6),
    }  # fmt: skip
    return again, salve.Dictionary(tensors, L1(), first.acts.site, {})


def test_shifts_are_those_of_means_and_their_p_those_of_all_deals(recorder: Any) -> None:
    again, dictionary = recorder
    x = draw(30, 6)
    x[18:, 2] += 3
    first, second = again(x[:18], "first"), again(x[18:], "second")
    result = salve.compare_recordings(dictionary, first, second, permutations=99)
    expected = (x[18:].mean(0) - x[:18].mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(result.shift, expected.double(), rtol=1e-5, atol=1e-6)
    assert float(result.p_all[2]) == 0.01
    assert int((result.p_all <= 0.05).sum()) == 1
    assert bool((result.p <= result.p_all).all())
    assert (result.p_all <= 0.05).tolist() == (result.shift.abs() > result.null).tolist()
    assert "1 of 6 latents differ" in repr(result)
    assert str(result).splitlines()[2].split()[0] == "2"


def test_blocks_change_nothing(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    again, dictionary = recorder
    first, second = again(draw(20, 6, seed=1), "first"), again(draw(15, 6, seed=2), "second")
    whole = salve.compare_recordings(dictionary, first, second, permutations=20)
    monkeypatch.setattr(differing, "_MOST_CODES", 80)
    parts = salve.compare_recordings(dictionary, first, second, permutations=20)
    torch.testing.assert_close(parts.shift, whole.shift)
    assert torch.equal(parts.p_all, whole.p_all)
    assert parts.null == pytest.approx(whole.null)


def test_equal_recordings_differ_as_often_as_is_said(recorder: Any) -> None:
    again, dictionary = recorder
    significant = 0
    for seed in range(40):
        first = again(draw(14, 6, seed=2 * seed), f"first{seed}")
        second = again(draw(10, 6, seed=2 * seed + 1), f"second{seed}")
        result = salve.compare_recordings(dictionary, first, second, permutations=39, seed=seed)
        significant += int((result.p_all <= 0.05).any())
    assert significant <= 6  # 2 expected


def test_strangers_are_unfamiliar_and_others_uniformly_familiar(recorder: Any) -> None:
    again, dictionary = recorder
    known = again(draw(800, 6), "known")
    others = draw(400, 6, seed=1)
    others[:20, 3] = 9.0
    result = salve.unfamiliarity(dictionary, known, again(others, "others"))
    assert float(result.code_p[:20].max()) <= 0.01
    same = result.code_p[20:]
    assert float((same <= 0.05).double().mean()) == pytest.approx(0.05, abs=0.03)
    assert float((same <= 0.5).double().mean()) == pytest.approx(0.5, abs=0.08)
    assert float(result.code_p.min()) >= 1 / 401
    assert "400 images" in repr(result)
    assert set(str(result).splitlines()[2].split()[:1]) <= {str(row) for row in range(20)}


def test_what_cannot_be_rebuilt_is_unfamiliar_by_its_error(recorder: Any) -> None:
    again, dictionary = recorder
    tensors = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    tensors["encoder_weight"][5] = 0  # nothing of feature 5 comes back
    blind = salve.Dictionary(tensors, L1(), dictionary.site, {})
    x = draw(200, 6)
    x[:, 5] *= 0.1
    strange = x[:10].clone()
    strange[:, 5] = 4.0
    result = salve.unfamiliarity(blind, again(x, "known"), again(strange, "strange"))
    assert float(result.error_p.max()) == pytest.approx(1 / 101)
    assert float(result.code_p.mean()) > 0.2


def test_images_that_come_in_turns_are_familiar_both(recorder: Any) -> None:
    again, dictionary = recorder
    x = draw(400, 6)
    x[::2, 1] += 6.0  # two kinds of images, by turns
    others = draw(200, 6, seed=1)
    others[::2, 1] += 6.0
    same = salve.unfamiliarity(dictionary, again(x, "known"), again(others, "others")).code_p
    for kind in (same[::2], same[1::2]):
        assert float(kind.mean()) == pytest.approx(0.5, abs=0.1)


def test_recordings_of_something_else_are_refused(recorder: Any, make_recorded: Any) -> None:
    again, dictionary = recorder
    acts = again(draw(9, 6), "acts")
    tokens = make_recorded(torch.rand(12, 3, 6), torch.arange(12) % 2).acts
    with pytest.raises(InputError, match="record the dictionary's site"):
        salve.compare_recordings(dictionary, acts, tokens)
    with pytest.raises(InputError, match="record the dictionary's site"):
        salve.unfamiliarity(dictionary, tokens, acts)
    with pytest.raises(InputError, match="permutations is 0"):
        salve.compare_recordings(dictionary, acts, acts, permutations=0)
    with pytest.raises(InputError, match="at least four"):
        salve.unfamiliarity(dictionary, again(draw(3, 6), "three"), acts)
