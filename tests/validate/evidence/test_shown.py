"""Evidence that needs the images: it is that of the single calls, streamed, kept, and checked."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import salve_plugin as salve
from benchmarks.localization_parts import drawn, trained
from salve_plugin.control.concepts.evidence import auc
from salve_plugin.demo import digits
from salve_plugin.errors import InputError
from salve_plugin.validate.activity import activity_tolerance
from salve_plugin.validate.code_map import LayerCodeMap, code_maps
from salve_plugin.validate.evidence import recorded_images
from salve_plugin.validate.evidence.concept_sets import concept_profile
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence
from salve_plugin.validate.evidence.map_falls import MAPPED

FIXTURES = Path(__file__).parents[2] / "fixtures"
N_IMAGES = 40


class Study(NamedTuple):
    hooked: salve.HookedModel
    dictionary: salve.Dictionary
    acts: salve.Activations
    images: Any
    folder: Path
    result: LatentEvidence

    def again(self, **changes: Any) -> LatentEvidence:
        return salve.evidence(
            self.hooked, self.dictionary, self.acts,
            **{"images": self.images, "permutations": 19, "folder": self.folder, **changes},
        )  # fmt: skip


def masks(images: Tensor) -> list[Tensor]:
    """Return 1 where there is ink, 2 above it, 0 elsewhere."""
    ink = images.mean(1) > 0
    below = ink.long().cummax(1).values
    return list(torch.where(ink, 1, 2 * (1 - below)))


@pytest.fixture(scope="module")
def study(digits_test: digits.Split, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A network, a dictionary of its head's input, and all evidence; nothing here changes them."""
    hooked = salve.attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    few = digits.Split(digits_test.images[:N_IMAGES], digits_test.labels[:N_IMAGES])
    folder = tmp_path_factory.mktemp("study")
    acts = salve.record(hooked, few.batches(), folder=folder / "acts", progress=False)
    dictionary = salve.fit(acts, n_latents=10, steps=30)
    images = TensorDataset(few.images, few.labels)
    study = Study(hooked, dictionary, acts, images, folder / "kept", None)  # type: ignore[arg-type]
    concepts = {"threes": few.images[few.labels == 3], "others": few.images[few.labels != 3][:12]}
    result = study.again(masks=masks(few.images), segments=("ink", "above"), concepts=concepts)
    return study._replace(result=result)


def test_one_call_gives_all_and_shows_it_beside_chance(study: Study) -> None:
    result = study.result
    assert result.notes == ()
    assert result.maps is not None
    assert result.segments is not None
    assert result.concepts is not None
    lines = result.table([2]).splitlines()
    for head in ("blurred", "segment", "IoU", "concept", "AUC of the concept"):
        assert head in lines[1]
    for value, null in (
        (result.maps.fall, result.maps.fall_null), (result.segments.iou, result.segments.iou_null),
        (result.concepts.auc, result.concepts.auc_null),
    ):  # fmt: skip
        assert f"{float(value[2]):.3f} ({float(null[2]):.3f})" in lines[2]
    assert str(result.segments.name(2)) in lines[2]
    bare = study.again(images=None, folder=None)
    assert (bare.maps, bare.segments, bare.concepts) == (None, None, None)
    assert "blurred" not in bare.table()
    assert torch.equal(bare.auc, result.auc)


def test_what_latents_lose_is_what_single_calls_say(study: Study) -> None:
    maps = study.result.maps
    assert maps is not None
    for latent in (0, 7):
        chosen = study.result.top_images[latent][:MAPPED]
        sign = float(study.result.activity.signs[latent])
        images = study.images.tensors[0][chosen]
        fam = salve.LayerGradFam.of(study.hooked, study.dictionary)
        heat = sign * fam.attribute(images, target=latent)
        check = salve.map_check(
            study.hooked, study.dictionary, images, latent, heat=heat, stage="post", regions=1
        )
        share = float(check.fall.sum() / check.before.sum())
        assert float(maps.fall[latent]) == pytest.approx(share, abs=1e-5)
    assert bool((maps.fall_p >= 1 / 20).all())


def test_codes_of_all_latents_by_position_are_those_of_each(study: Study) -> None:
    fam = LayerCodeMap.of(study.hooked, study.dictionary)
    images = study.images.tensors[0][:3]
    every = torch.stack(list(code_maps(fam, images)))
    for latent in (0, 4):
        torch.testing.assert_close(every[:, latent, None], fam.attribute(images, target=latent))


def test_a_concept_is_told_as_its_codes_tell_it(study: Study) -> None:
    result = study.result.concepts
    assert result is not None
    images, labels = study.images.tensors
    signs = study.result.activity.signs
    codes = study.dictionary.encode(study.acts.tensor()) * signs
    three, other = codes[labels == 3], codes[labels != 3][:12]
    both = torch.cat([three, other]).double()
    both = both * (both.abs() > activity_tolerance(study.acts))
    for latent in range(10):
        area = auc(both[:, latent], torch.arange(len(both)) < len(three))
        best = int(result.best[latent])
        if best >= 0:
            assert float(result.auc[latent]) == pytest.approx(max(area, 1 - area), abs=1e-6)
            assert result.name(latent) == ("threes" if area > 0.5 else "others")
    same = concept_profile(
        study.hooked, study.dictionary, {"a": images[:9], "b": images[9:20]}, signs,
        tolerance=0.0, permutations=9, seed=0,
    )  # fmt: skip
    assert bool((same.auc_p >= 0.1).all())


def test_what_is_kept_is_not_run_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError("an image was read again")

    names = sorted(path.name for path in study.folder.iterdir())
    assert [name.split("-")[0] for name in names] == ["flips", "latents", "maps", "segments"]
    monkeypatch.setattr(recorded_images.RecordedImages, "read", never)
    few = study.images.tensors[0]
    again = study.again(masks=masks(few), segments=("ink", "above"))
    assert study.result.maps is not None
    assert again.maps is not None
    assert torch.equal(again.maps.fall, study.result.maps.fall)
    assert again.segments is not None
    assert again.segments.name(2) == study.result.segments.name(2)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="another recording, dictionary, model or setting"):
        study.again(masks=[1 - mask.clamp(max=1) for mask in masks(few)])
    with pytest.raises(InputError, match="a name for each from number 1 on"):
        study.again(masks=masks(few), segments=("ink",))


def test_what_another_network_gave_is_not_taken_for_this_ones(study: Study) -> None:
    other = salve.attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    with torch.no_grad():
        next(iter(other.model.parameters())).mul_(1.5)
    with (
        pytest.warns(UserWarning, match="of network"),
        pytest.raises(InputError, match="another recording, dictionary, model or setting"),
    ):
        study._replace(hooked=other).again(on_base_mismatch="warn")


def test_other_images_and_half_of_what_is_needed_are_refused(study: Study) -> None:
    images, labels = study.images.tensors
    moved = TensorDataset(images, labels.roll(1))
    pairs = zip(images, labels, strict=True)
    uneven = [(image[:, number % 2 :], label) for number, (image, label) in enumerate(pairs)]
    for data_set, message in (
        (moved, "was recorded in its place"), (TensorDataset(images[:5], labels[:5]), "5 items"),
        (iter(study.images), "data set with a length"), (uneven, "images have the sizes"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            study.again(images=data_set, folder=None)
    with pytest.raises(InputError, match="pass images= too"):
        study.again(images=None, masks=masks(images))
    with pytest.raises(InputError, match="pass masks= too"):
        study.again(segments=("ink", "above"))
    with pytest.raises(InputError, match="at least two sets"):
        study.again(concepts={"threes": images[:3]})


def test_where_there_is_no_map_it_is_said(digits_test: digits.Split) -> None:
    hooked = salve.attach(digits.load("vit", FIXTURES / "digits_vit.safetensors"))
    few = digits.Split(digits_test.images[:20], digits_test.labels[:20])
    site = hooked.site("unembed.hook_in")
    acts = salve.record(hooked, few.batches(), progress=False)
    dictionary = salve.fit(acts, n_latents=4, steps=5)
    assert dictionary.site == site
    result = salve.evidence(
        hooked, dictionary, acts, images=TensorDataset(few.images, few.labels), permutations=2,
        masks=masks(few.images),
    )  # fmt: skip
    for note, part in zip(("no maps", "no regions"), (result.maps, result.segments), strict=True):
        if part is None:
            assert any(one.startswith(note) for one in result.notes)
            assert note in result.table()
    assert result.segments is None  # the class token or a norm lies between


@pytest.mark.slow
@pytest.mark.parametrize("site", ["blocks.2.hook_resid_post", "unembed.hook_in"])
def test_parts_at_known_places_are_the_segments_of_their_latents(site: str) -> None:
    """Pictures of six shapes and a network that tells them: every shape is a latent's region."""

    def pictures(count: int, seed: int) -> tuple[TensorDataset, list[Tensor]]:
        images, parts = drawn(count, seed)
        kept = parts.flatten(1).any(1)
        numbers = (parts[kept] * torch.arange(1, 7)[:, None, None]).sum(1)
        return TensorDataset(images[kept], parts[kept].flatten(2).any(2).float().argmax(1)), [
            *numbers
        ]

    body = salve.Site("blocks.2.hook_resid_post", "body", "out", "nchw", 64)
    head = salve.Site("unembed.hook_in", "fc", "in", "pooled", 64, readers=("fc",))
    hooked = salve.HookedModel(
        trained(400), [body, head], attribution_site=body, description={"input_size": [1, 64, 64]}
    )
    train, (test, numbers) = pictures(300, 1)[0], pictures(128, 2)
    acts = salve.record(hooked, DataLoader(train, 64), site, progress=False)
    dictionary = salve.fit(acts, "topk", n_latents=32, k=4, seed=0, learning_rate=1e-3)
    held_out = salve.record(hooked, DataLoader(test, 64), site, progress=False)
    names = ("disc", "ring", "cross", "rows", "columns", "chequers")
    result = salve.evidence(
        hooked, dictionary, held_out, images=test, masks=numbers, segments=names, permutations=19
    )
    assert result.segments is not None
    assert result.maps is not None
    told = (result.segments.iou_p <= 0.05) & (result.segments.iou > 3 * result.segments.iou_null)
    assert {result.segments.name(int(one)) for one in told.nonzero()} == {*names}
    assert int((result.maps.fall_p <= 0.05).sum()) >= 12
    assert bool((result.kl > 0).any())
