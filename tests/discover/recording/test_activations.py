"""Reading a recording: every row once, in bounded memory, and damage is noticed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.discover.recording import activations
from salve_plugin.discover.recording.activations import Activations, Batch
from salve_plugin.errors import InputError, ReadError

MakeRecording = Callable[..., Activations]


def numbered(rows: int, width: int = 3) -> tuple[Tensor, Tensor]:
    """Return rows that say their own number, and labels 0, 1, 2, 0, ..."""
    return torch.arange(rows * width).float().reshape(rows, width), torch.arange(rows) % 3


@given(
    rows=st.integers(1, 60),
    shard_rows=st.integers(1, 70),
    size=st.integers(1, 70),
    block_and_window=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    seed=st.none() | st.integers(0, 5),
)
@settings(
    deadline=None,
    max_examples=50,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_batches_yield_every_row_exactly_once_with_its_own_label_and_image(
    make_recording: MakeRecording,
    rows: int,
    shard_rows: int,
    size: int,
    block_and_window: tuple[int, int],
    seed: int | None,
) -> None:
    x, labels = numbered(rows)
    acts = make_recording(x, labels, shard_rows=shard_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "BLOCK_ROWS", block_and_window[0])
        patch.setattr(activations, "WINDOW_ROWS", block_and_window[1])
        batches = list(acts.batches(size, shuffle_seed=seed))
    assert [len(batch) for batch in batches] == [min(size, rows - i) for i in range(0, rows, size)]
    whole = Batch.joined(batches)
    order = whole.images.argsort()
    assert torch.equal(whole.x[order], x)
    assert torch.equal(whole.labels[order], labels)
    if seed is None:
        assert order.tolist() == list(range(rows))


def test_the_same_seed_gives_the_same_order_and_another_seed_another(
    make_recording: MakeRecording,
) -> None:
    acts = make_recording(*numbered(500), shard_rows=130)

    def order(seed: int) -> list[int]:
        return [i for batch in acts.batches(64, shuffle_seed=seed) for i in batch.images.tolist()]

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3) != list(range(500))


def test_shuffled_batches_of_a_sorted_recording_mix_the_classes(
    make_recording: MakeRecording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no window is longer than a fifth of the recording."""
    monkeypatch.setattr(activations, "BLOCK_ROWS", 10)
    monkeypatch.setattr(activations, "WINDOW_ROWS", 200)
    labels = torch.arange(1000) // 250
    acts = make_recording(torch.randn(1000, 2), labels, shard_rows=100)
    for batch in acts.batches(100, shuffle_seed=0):
        assert set(batch.labels.tolist()) == {0, 1, 2, 3}


def test_rows_can_be_chosen_by_image(make_recording: MakeRecording) -> None:
    acts = make_recording(*numbered(50), shard_rows=20)
    odd = Batch.joined(list(acts.batches(7, shuffle_seed=1, keep=lambda images: images % 2 == 1)))
    assert sorted(odd.images.tolist()) == list(range(1, 50, 2))


def test_tensor_and_labels_are_in_the_loaders_order(make_recording: MakeRecording) -> None:
    x, labels = numbered(55)
    acts = make_recording(x, labels, shard_rows=20)
    assert torch.equal(acts.tensor(), x)
    assert torch.equal(acts.labels(), labels)
    assert (acts.n_rows, acts.n_images, acts.n_classes, acts.width) == (55, 55, 3, 3)


def test_a_batch_size_below_one_is_refused(make_recording: MakeRecording) -> None:
    with pytest.raises(InputError, match="batch size is 0; at least 1 was"):
        make_recording(*numbered(5)).batches(0)


def test_a_missing_shard_is_named(make_recording: MakeRecording) -> None:
    acts = make_recording(*numbered(50), shard_rows=20)
    (acts.folder / "shard-00001.safetensors").unlink()
    with pytest.raises(ReadError, match=r"shard-00001\.safetensors is missing"):
        Activations.load(acts.folder)
    with pytest.raises(ReadError, match=r"shard-00001\.safetensors"):
        list(acts.batches(8))
    with pytest.raises(ReadError, match=r"shard-00001\.safetensors"):
        acts.labels()


def test_a_truncated_shard_is_named(make_recording: MakeRecording) -> None:
    acts = make_recording(*numbered(50), shard_rows=20)
    path = acts.folder / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ReadError, match=r"shard-00002\.safetensors has \d+ bytes, the index says"):
        Activations.load(acts.folder)
    with pytest.raises(ReadError, match=r"shard-00002\.safetensors"):
        list(acts.batches(8, shuffle_seed=0))


def test_a_shard_of_another_shape_is_named(make_recording: MakeRecording) -> None:
    acts = make_recording(*numbered(50), shard_rows=25)
    path = acts.folder / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[25,3]", b"[3,25]"))
    with pytest.raises(ReadError, match=r"shard-00000\.safetensors holds 'activations' of shape"):
        list(acts.batches(8))


def test_shards_in_each_others_place_are_named(make_recording: MakeRecording) -> None:
    acts = make_recording(*numbered(50), shard_rows=25)
    one, other = (acts.folder / f"shard-0000{number}.safetensors" for number in (0, 1))
    one_data, other_data = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_data)
    other.write_bytes(one_data)
    for read in (acts.tensor, acts.labels, acts.image_labels):
        with pytest.raises(ReadError, match=r"00000\.safetensors begins with image 25, not 0"):
            read()


def test_a_recording_that_took_the_place_of_an_open_one_is_not_read_for_it(
    make_recording: MakeRecording,
) -> None:
    x, labels = numbered(50)
    acts = make_recording(x, labels)
    index = acts.folder / "index.json"
    index.write_bytes(index.read_bytes())  # as a copy that was put back has another time
    assert torch.equal(acts.tensor(), x)
    shutil.rmtree(acts.folder)
    acts.folder.mkdir()
    with pytest.raises(ReadError, match=r"index\.json is missing"):
        acts.tensor()
    make_recording(-x, labels)
    for read in (acts.tensor, acts.labels):
        with pytest.raises(ReadError, match="holds another recording than when this one was"):
            read()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "index.json is missing"),
        ("{", "cannot read"),
        ("[]", "format version None"),
        ('{"format_version": 9}', "format version 9"),
        ('{"format_version": 1}', "is damaged"),
    ],
)
def test_a_folder_without_a_readable_index_is_refused(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(ReadError, match=complaint):
        Activations.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shards", [{"file": "../x"}]),
        ("dtype", "int8"),
        ("n_classes", None),
        ("site", {"name": "x"}),
        ("model", None),
        ("model", "ab"),
        ("model", [1]),
        ("classes", 3),
        ("shards", 3),
    ],
)
def test_a_damaged_index_is_refused(
    make_recording: MakeRecording, field: str, value: object
) -> None:
    path = make_recording(*numbered(5)).folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ReadError, match="is damaged"):
        Activations.load(path.parent)


def test_an_index_of_any_depth_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(ReadError, match="record again"):
        Activations.load(tmp_path)
