"""Recording: the right rows, checked input, the model left alone, and runs that continue."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from salve_plugin.adapter import attach
from salve_plugin.demo import digits
from salve_plugin.discover.recording.activations import Activations, Batch
from salve_plugin.discover.recording.loader import class_names
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError, ReadError, UnknownSiteError, WriteError
from salve_plugin.hooks import HookedModel, reading

Batches = list[tuple[Tensor, Tensor]]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rows_are_the_heads_inputs_in_the_loaders_order(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    acts = record(hooked_resnet, few_batches, folder=tmp_path, shard_rows=25, progress=False)
    images = torch.cat([images for images, _ in few_batches])
    with torch.no_grad(), reading(hooked_resnet.model, [acts.site]) as seen:
        hooked_resnet.model(images)
    torch.testing.assert_close(acts.tensor(), seen[acts.site.name], rtol=1e-5, atol=1e-5)
    assert torch.equal(acts.labels(), torch.cat([labels for _, labels in few_batches]))
    assert (acts.n_rows, acts.n_images, acts.width) == (60, 60, 128)
    # A shard ends with the batch that reaches 25 rows: three batches of ten.
    assert [shard.rows for shard in acts._shards] == [30, 30]
    assert list(files(tmp_path)) == [
        "index.json", "shard-00000.safetensors", "shard-00001.safetensors"
    ]  # fmt: skip


def test_maps_give_a_row_for_each_position(
    hooked_resnet: HookedModel, few_batches: Batches
) -> None:
    site = hooked_resnet.site("blocks.3.hook_resid_post")
    acts = record(hooked_resnet, few_batches[:2], site.name, progress=False)
    with torch.no_grad(), reading(hooked_resnet.model, [site]) as seen:
        hooked_resnet.model(few_batches[1][0])
    assert acts.n_rows == 20 * 16
    whole = Batch.joined(list(acts.batches(50)))
    feature_map = seen[site.name]  # (10, 128, 4, 4)
    torch.testing.assert_close(
        whole.x[whole.images == 13], feature_map[3].flatten(1).T, rtol=1e-5, atol=1e-5
    )
    assert set(whole.labels[whole.images == 13].tolist()) == {int(few_batches[1][1][3])}
    assert torch.equal(acts.image_labels(), torch.cat([y for _, y in few_batches[:2]]))


def test_tokens_give_a_row_for_each_patch_without_the_class_token(
    digits_vit: nn.Module, few_batches: Batches
) -> None:
    hooked = attach(digits_vit)
    site = hooked.site("blocks.1.hook_resid_post")
    acts = record(hooked, few_batches[:1], site.name, progress=False)
    with torch.no_grad(), reading(digits_vit, [site]) as seen:
        digits_vit(few_batches[0][0])
    tokens = seen[site.name]  # (10, 1 + 16, 64)
    assert acts.n_rows == 160
    torch.testing.assert_close(acts.tensor(), tokens[:, 1:].reshape(160, 64))


def test_half_precision_is_stored_as_it_is_and_read_as_float32(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    hooked_resnet.model.bfloat16()
    acts = record(hooked_resnet, few_batches, folder=tmp_path, progress=False)
    stored = load_file(tmp_path / "shard-00000.safetensors")["activations"]
    assert stored.dtype == torch.bfloat16
    assert acts.tensor().dtype == torch.float32
    assert torch.equal(acts.tensor(), stored.float())


def test_the_model_is_left_as_it_was_found(
    hooked_resnet: HookedModel, few_batches: Batches
) -> None:
    model = hooked_resnet.model
    model.train()
    model.get_submodule("bn1").eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    acts = record(hooked_resnet, few_batches, progress=False)
    broken = [*few_batches[:1], (few_batches[1][0], few_batches[1][1] - 100)]
    with pytest.raises(InputError):
        record(hooked_resnet, broken, progress=False)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    # Recorded in eval mode: batch normalization did not look at the batch.
    model.eval()
    assert torch.equal(record(hooked_resnet, few_batches, progress=False).tensor(), acts.tensor())


def test_a_temporary_recording_goes_with_its_object(
    hooked_resnet: HookedModel, few_batches: Batches
) -> None:
    acts = record(hooked_resnet, few_batches, progress=False)
    batches = acts.batches(16)
    folder = acts.folder
    del acts
    assert len(list(batches)) == 4  # the iterator keeps it alive
    del batches
    gc.collect()
    assert not folder.exists()


def test_a_failed_temporary_recording_leaves_no_folder(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InputError):
        record(hooked_resnet, [*few_batches, (torch.zeros(2, 1, 32, 32), [0, 99])], progress=False)
    assert list(tmp_path.iterdir()) == []


class Nameless(IterableDataset[tuple[Tensor, int]]):
    """Digits from an iterable data set: its DataLoader has no length."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """Yield five equal images."""
        return iter([(torch.rand(1, 32, 32, generator=torch.Generator()), 3)] * 5)


def test_any_iterable_of_batches_will_do(hooked_resnet: HookedModel, few_batches: Batches) -> None:
    expected = record(hooked_resnet, few_batches, progress=False)
    once = record(hooked_resnet, iter(few_batches), progress=False)
    lists = record(hooked_resnet, [[x, y.int().tolist()] for x, y in few_batches], progress=False)
    assert torch.equal(once.tensor(), expected.tensor())
    assert torch.equal(lists.labels(), expected.labels())
    assert record(hooked_resnet, DataLoader(Nameless(), batch_size=2)).n_images == 5


def test_the_progress_bar_goes_to_stderr_and_can_be_silenced(
    hooked_resnet: HookedModel, few_batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    record(hooked_resnet, few_batches, progress=False)
    assert capsys.readouterr() == ("", "")
    record(hooked_resnet, few_batches)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "6/6" in shown.err


# --- class names and labels -------------------------------------------------------------------


@pytest.fixture
def image_folder(tmp_path: Path, digits_test: digits.Split) -> Path:
    """Thirty PNG digits of three classes in torchvision's ImageFolder layout."""
    for name, label in (("one", 1), ("three", 3), ("two", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number, image in enumerate(digits_test.images[digits_test.labels == label][:10]):
            pixels = (image[0] * 0.37 + 0.3).clamp(0, 1).mul(255).byte()
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def grey(image: Image.Image) -> Tensor:
    pixels: Tensor = pil_to_tensor(image.convert("L"))
    return (pixels.float() / 255 - 0.3) / 0.37


def test_class_names_come_from_the_data_set_also_through_subsets(
    hooked_resnet: HookedModel, image_folder: Path
) -> None:
    dataset = ImageFolder(str(image_folder), transform=grey)
    part = Subset(Subset(dataset, range(0, 30, 2)), range(10))
    cast(Any, hooked_resnet.model).reset_classifier(3)
    acts = record(hooked_resnet, DataLoader(part, batch_size=4), progress=False)
    assert acts.classes == ("one", "three", "two")
    assert acts.n_classes == 3
    assert acts.labels().tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_joined_data_sets_have_their_names_and_must_number_them_alike(image_folder: Path) -> None:
    whole = ImageFolder(str(image_folder), transform=grey)
    joined: ConcatDataset[Any] = ConcatDataset([Subset(whole, range(4)), whole])
    assert class_names(DataLoader(joined), None) == ("one", "three", "two")
    shutil.rmtree(image_folder / "one")
    other: ConcatDataset[Any] = ConcatDataset(
        [whole, ImageFolder(str(image_folder), transform=grey)]
    )
    with pytest.raises(InputError, match=r"\['one', 'three', 'two'\] and \['three', 'two'\]"):
        class_names(DataLoader(other), None)
    assert class_names(DataLoader(other), ("a", "b", "c")) == ("a", "b", "c")


def test_class_names_can_be_given(hooked_resnet: HookedModel, few_batches: Batches) -> None:
    acts = record(hooked_resnet, few_batches, classes=digits.CLASSES, progress=False)
    assert acts.classes == digits.CLASSES
    with pytest.raises(InputError, match="must be different strings"):
        record(hooked_resnet, few_batches, classes=["a"] * 10, progress=False)


@pytest.mark.parametrize("corrupt", ["garbage", "truncated"])
def test_an_unreadable_image_is_named_and_what_was_recorded_stays(
    hooked_resnet: HookedModel, image_folder: Path, tmp_path: Path, corrupt: str
) -> None:
    dataset = ImageFolder(str(image_folder), transform=grey)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=4)
    broken = image_folder / "two" / "3.png"  # image 23
    whole = broken.read_bytes()
    broken.write_bytes(b"no picture" if corrupt == "garbage" else whole[: len(whole) // 2])
    folder = tmp_path / "recording"
    with pytest.raises(ReadError, match=r"two/3\.png"):
        record(hooked_resnet, loader, folder=folder, shard_rows=8, progress=False, classes=())
    # The index, two shards of eight rows, and the batch before the one with the broken file.
    assert len(files(folder)) == 4
    with pytest.raises(ReadError, match="interrupted after 20 images"):
        Activations.load(folder)
    broken.write_bytes(whole)
    acts = record(hooked_resnet, loader, folder=folder, shard_rows=8, progress=False, classes=())
    assert acts.n_images == 30


X = torch.zeros(2, 1, 32, 32)


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        ((X, torch.tensor([1, 10])), r"label 10 in batch 1 is out of range: .* 0 to 9"),
        ((X, torch.tensor([-1, 1])), "label -1 in batch 1 is out of range"),
        ((X, torch.tensor([1.0, 2.0])), r"labels of batch 1 are torch.float32"),
        ((X, torch.tensor([True, False])), "labels of batch 1 are torch.bool"),
        ((X, ["one", "two"]), "labels of batch 1 are not numbers"),
        ((X, torch.tensor([1, 2, 3])), r"labels of shape \(3,\)"),
        ((X, torch.tensor([[1], [2]])), r"labels of shape \(2, 1\)"),
        ((X[:0], torch.zeros(0).long()), "at least one image"),
        (X, "batch 1 of the loader is a Tensor"),
        ((X,), r"batch 1 of the loader is a tuple of \['Tensor'\]"),
        ({"image": X}, "batch 1 of the loader is a dict"),
    ],
)
def test_batches_that_are_not_images_with_class_indices_are_refused(
    hooked_resnet: HookedModel, few_batches: Batches, batch: object, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        record(hooked_resnet, [few_batches[0], batch], classes=digits.CLASSES, progress=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(
    hooked_resnet: HookedModel, few_batches: Batches, bad: float
) -> None:
    images = few_batches[1][0].clone()
    images[4] = bad
    with pytest.raises(InputError, match=r"batch 1 has 128 NaN .* at 'unembed.hook_in' \(of 1280"):
        record(hooked_resnet, [few_batches[0], (images, few_batches[1][1])], progress=False)


def test_an_empty_loader_and_an_unknown_site_are_refused(
    hooked_resnet: HookedModel, few_batches: Batches
) -> None:
    with pytest.raises(InputError, match="the loader is empty"):
        record(hooked_resnet, [], progress=False)
    with pytest.raises(UnknownSiteError, match=r"unembed\.hook_in"):
        record(hooked_resnet, few_batches, "blocks.99", progress=False)
    with pytest.raises(InputError, match="at least 1 was expected"):
        record(hooked_resnet, few_batches, shard_rows=0, progress=False)


# --- continuing --------------------------------------------------------------------------------


def interrupted(batches: Batches, after: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from batches[:after]
    raise KeyboardInterrupt


def test_an_interrupted_recording_continues_without_running_the_model_again(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    folder, whole = tmp_path / "a", tmp_path / "b"
    with pytest.raises(KeyboardInterrupt) as caught:
        record(
            hooked_resnet, interrupted(few_batches, 5), folder=folder, shard_rows=20, progress=False
        )
    assert caught.value.__notes__ == [
        f"50 images are recorded in {folder}: repeat the call to go on with the others"
    ]
    passes = []
    handle = hooked_resnet.model.register_forward_hook(lambda *_: passes.append(1))
    record(hooked_resnet, few_batches, folder=folder, shard_rows=20, progress=False)
    assert len(passes) == 1  # four of six batches were in whole shards, one in a partial one
    record(hooked_resnet, few_batches, folder=whole, shard_rows=20, progress=False)
    handle.remove()
    assert files(folder) == files(whole)


@pytest.mark.parametrize("rows", [20, 10**6])
def test_any_number_of_interrupts_gives_the_same_files(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path, rows: int
) -> None:
    folder, whole = tmp_path / "a", tmp_path / "b"
    passes = []
    handle = hooked_resnet.model.register_forward_hook(lambda *_: passes.append(1))
    for after in (1, 2, 2, 5, 3):  # a shard of two batches, or one for all
        loader = interrupted(few_batches, after)
        with pytest.raises((KeyboardInterrupt, InputError)):
            record(hooked_resnet, loader, folder=folder, shard_rows=rows, progress=False)
        assert sum(".partial-" in name for name in files(folder)) <= 1
    record(hooked_resnet, few_batches, folder=folder, shard_rows=rows, progress=False)
    assert len(passes) == 6
    handle.remove()
    record(hooked_resnet, few_batches, folder=whole, shard_rows=rows, progress=False)
    assert files(folder) == files(whole)


def test_an_interrupt_while_a_shard_is_written_gives_the_same_files(
    hooked_resnet: HookedModel,
    few_batches: Batches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, whole = tmp_path / "a", tmp_path / "b"
    replace = os.replace

    def interrupted_once(old: str, new: str) -> None:
        if Path(new).name == "shard-00000.safetensors":
            monkeypatch.setattr(os, "replace", replace)
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        record(hooked_resnet, few_batches, folder=folder, shard_rows=20, progress=False)
    record(hooked_resnet, few_batches, folder=folder, shard_rows=20, progress=False)
    record(hooked_resnet, few_batches, folder=whole, shard_rows=20, progress=False)
    assert files(folder) == files(whole)


def test_a_damaged_partial_shard_is_refused(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        record(hooked_resnet, interrupted(few_batches, 2), folder=tmp_path, progress=False)
    path = tmp_path / "shard-00000.partial-2.safetensors"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ReadError, match=r"partial-2.safetensors .* SHA-256 differs"):
        record(hooked_resnet, few_batches, folder=tmp_path, progress=False)


def test_the_digest_of_the_images_asks_for_no_size_of_batches_and_sees_any_change(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*few_batches, strict=True))
    one = record(hooked_resnet, few_batches, folder=tmp_path, progress=False)
    other = record(hooked_resnet, [(images, labels)], progress=False)
    assert one.images_sha256 == other.images_sha256 is not None
    assert Activations.load(tmp_path).images_sha256 == one.images_sha256
    changed = images.clone()
    changed[7, 0, 0, 0] += 1e-3
    for different in (changed, images.flip(0), images[:-1], images[:, :, :-1]):
        again = record(hooked_resnet, [(different, labels[: len(different)])], progress=False)
        assert again.images_sha256 != one.images_sha256


def test_a_finished_recording_returns_at_once(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    first = record(hooked_resnet, few_batches, folder=tmp_path, progress=False)
    before = files(tmp_path)
    again = record(hooked_resnet, interrupted(few_batches, 1), folder=tmp_path, progress=False)
    assert torch.equal(again.tensor(), first.tensor())
    assert files(tmp_path) == before


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", ["order", "pixels", "labels", "batch size", "fewer"])
def test_a_loader_that_changed_is_refused(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path, change: str, finished: bool
) -> None:
    def start() -> None:
        record(
            hooked_resnet, few_batches if finished else interrupted(few_batches, 5),
            folder=tmp_path, shard_rows=20, progress=False,
        )  # fmt: skip

    if finished:
        start()
    else:
        with pytest.raises(KeyboardInterrupt):
            start()
    before = files(tmp_path)
    x, y = few_batches[0]
    other: Batches = {
        "order": few_batches[::-1],
        "pixels": [(x + 0.01, y), *few_batches[1:]],
        "labels": [(x, y.roll(1)), *few_batches[1:]],
        "batch size": [(x[:5], y[:5]), (x[5:], y[5:]), *few_batches[1:]],
        "fewer": few_batches[:3],
    }[change]
    with pytest.raises(InputError, match="shuffle=False"):
        record(hooked_resnet, other, folder=tmp_path, shard_rows=20, progress=False)
    if not finished and change == "fewer":
        with pytest.raises(InputError, match="yields 3 batches, not the 5 recorded"):
            record(hooked_resnet, iter(other), folder=tmp_path, shard_rows=20, progress=False)
    assert files(tmp_path) == before


def test_a_recording_of_another_site_model_or_naming_is_refused(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    record(hooked_resnet, few_batches, folder=tmp_path, progress=False)
    with pytest.raises(InputError, match=r"recording of 'unembed.hook_in' with other site"):
        record(hooked_resnet, few_batches, "blocks.3.hook_resid_post", folder=tmp_path)
    with pytest.raises(InputError, match="other class names"):
        record(hooked_resnet, few_batches, folder=tmp_path, classes=digits.CLASSES)
    with torch.no_grad():
        next(hooked_resnet.model.parameters()).view(-1)[7] += 1e-6
    with pytest.raises(InputError, match="other model weights"):
        record(hooked_resnet, few_batches, folder=tmp_path, progress=False)


def test_a_change_of_precision_while_continuing_is_refused(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        record(
            hooked_resnet,
            interrupted(few_batches, 3),
            folder=tmp_path,
            shard_rows=10,
            progress=False,
        )
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match="bfloat16 activations, those before float32"),
    ):
        record(hooked_resnet, few_batches, folder=tmp_path, shard_rows=10, progress=False)


def test_verify_finds_a_flipped_bit(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    record(hooked_resnet, few_batches, folder=tmp_path, progress=False)
    path = tmp_path / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    Activations.load(tmp_path)
    with pytest.raises(ReadError, match=r"shard-00000.safetensors .* SHA-256 differs"):
        Activations.load(tmp_path, verify=True)


def test_a_folder_that_cannot_be_made_is_refused(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write to"):
        record(hooked_resnet, few_batches, folder=tmp_path / "file" / "x", progress=False)
