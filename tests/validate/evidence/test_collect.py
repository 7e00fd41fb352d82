"""One call for all latents: planted ones are told, blocks change nothing, work is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

import salve_plugin as salve
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.errors import InputError, ReadError, WriteError
from salve_plugin.validate.evidence import collect
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence


def numbers(result: LatentEvidence) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(result).items() if isinstance(value, torch.Tensor)}


def test_planted_latents_are_told_and_the_others_are_not(known: Any) -> None:
    result = salve.evidence(*known, permutations=99)
    assert result.label[:3].tolist() == [0, 1, 2]
    assert float(result.auc[:3].min()) > 0.95
    assert result.auc_p_all[:3].tolist() == [0.01] * 3
    assert result.precision[:3].tolist() == [1.0] * 3
    assert float(result.effect[:3].max()) < 0
    assert float(result.effect_p[:3].max()) <= 2 / 16  # at most one of 15 others does as much
    assert int((result.auc_p_all[3:] <= 0.05).sum()) <= 1
    assert float(result.auc_null.max()) < 0.75
    labels = known.acts.image_labels()
    assert labels[result.top_images[1]].tolist() == [1] * 10
    codes = known.dictionary.encode(known.acts.tensor())
    torch.testing.assert_close(result.largest, codes.abs().amax(0))


def test_blocks_of_latents_change_no_number(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = numbers(salve.evidence(*known, permutations=20))
    monkeypatch.setattr(collect, "MOST_LATENTS", 5)
    parts = numbers(salve.evidence(*known, permutations=20))
    assert len(whole) == 18
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, equal_nan=True, msg=name)


def test_what_is_done_is_kept_and_of_something_else_refused(
    known: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(collect, "MOST_LATENTS", 6)
    folder = tmp_path / "kept"
    first = salve.evidence(*known, permutations=20, folder=folder)
    names = sorted(path.name for path in folder.glob("latents-*"))
    assert (folder / "flips-000000.safetensors").exists()
    assert names == [f"latents-{start:06d}.safetensors" for start in (0, 6, 12)]
    (folder / names[1]).unlink()
    before = {name: (folder / name).stat().st_mtime_ns for name in (names[0], names[2])}
    again = salve.evidence(*known, permutations=20, folder=folder)
    assert before == {name: (folder / name).stat().st_mtime_ns for name in before}
    for name, value in numbers(first).items():
        assert torch.equal(value.nan_to_num(nan=9), numbers(again)[name].nan_to_num(nan=9))
    with pytest.raises(InputError, match="another recording, dictionary, model or setting"):
        salve.evidence(*known, permutations=21, folder=folder)
    with torch.no_grad():
        known.hooked.model.fc.bias[0] += 1
    with pytest.raises(InputError, match="another recording, dictionary, model or setting"):
        salve.evidence(*known, permutations=20, folder=folder)
    (folder / names[0]).write_bytes(b"cut")
    with pytest.raises(ReadError, match="delete the file"):
        salve.evidence(*known, permutations=20, folder=folder)


def test_of_positions_the_strongest_counts_and_effects_are_unknown(make_recorded: Any) -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    x = torch.rand(40, 5, 6, generator=random)
    x[:, 1:, 0] = 0
    x[labels == 1, 3, 0] = -3.0  # one position of four, and a negative code
    recorded = make_recorded(x, labels)
    tensors = {
        "atoms": torch.eye(6), "encoder_weight": torch.eye(6),
        "encoder_bias": torch.zeros(6), "decoder_bias": torch.zeros(6),
    }  # fmt: skip
    dictionary = salve.Dictionary(tensors, L1(), recorded.acts.site, {})
    result = salve.evidence(recorded.hooked, dictionary, recorded.acts, permutations=99, top=5)
    assert int(result.label[0]) == 1
    assert float(result.auc[0]) == 1
    assert float(result.largest[0]) == -3
    assert float(result.density[0]) == pytest.approx(1 / 8)
    assert float(result.auc_p_all[0]) == 0.01
    assert bool(result.effect.isnan().all())
    assert bool(result.curve.isnan().all())
    assert "-" in result.table([0]).splitlines()[2]


def test_it_shows_itself_in_a_line_a_table_and_a_notebook(known: Any) -> None:
    result = salve.evidence(*known, permutations=99)
    assert "latents tell a class beyond chance" in repr(result)
    lines = result.table().splitlines()
    assert lines[0] == "16 latents on 150 images"
    assert {int(line.split()[0]) for line in lines[2:5]} == {0, 1, 2}
    assert len(result.table([4, 5]).splitlines()) == 8
    assert "<table" in result._repr_html_()
    with pytest.raises(InputError, match="no latents \\[16\\]"):
        result.table([16])


@pytest.mark.usefixtures("untyped")
def test_parts_that_do_not_belong_together_are_refused(
    known: Any, make_recorded: Any, tmp_path: Path
) -> None:
    hooked, dictionary, acts = known
    for wrong, message in (
        ({"top": 0}, "top is 0; at least 1"), ({"top": "3"}, "top is '3'; expected an integer"),
        ({"permutations": 2.5}, "permutations is 2.5"), ({"seed": None}, "seed is None"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            salve.evidence(hooked, dictionary, acts, **wrong)
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="File exists"):
        salve.evidence(hooked, dictionary, acts, permutations=1, folder=tmp_path / "file")
    tokens = make_recorded(torch.rand(12, 3, 16), torch.arange(12) % 2)
    with pytest.raises(InputError, match="record the dictionary's site"):
        salve.evidence(tokens.hooked, dictionary, tokens.acts)
