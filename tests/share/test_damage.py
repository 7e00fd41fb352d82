"""Artifacts that were damaged or swapped: every changed bit, byte and file is found."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifacts import CARD, CONFIG, altered, covered, flipped, in_memory, reader_of

from salve_plugin.control.edit import Edit
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share.artifact import EditArtifact

FORMAT = EditArtifact.format


def test_links_pickles_missing_and_swapped_files_are_refused(
    saved: Path, tiny_edit: Edit, tmp_path: Path
) -> None:
    file = saved / "edit.safetensors"
    data = file.read_bytes()
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="cannot read"):
        EditArtifact.from_pretrained(saved)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="is a link"):
        EditArtifact.from_pretrained(saved)
    file.unlink()
    torch.save({"direction": torch.ones(4)}, file)
    with pytest.raises(ArtifactError):
        EditArtifact.from_pretrained(saved)
    other = EditArtifact(altered(tiny_edit, strength=0.5)).save_pretrained(tmp_path / "other")
    file.write_bytes((other / "edit.safetensors").read_bytes())
    with pytest.raises(ArtifactError):
        EditArtifact.from_pretrained(saved)
    file.write_bytes(data)
    EditArtifact.from_pretrained(saved)


def test_a_subfolder_through_a_link_and_an_empty_source_are_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository" / "a").mkdir(parents=True)
    (tmp_path / "repository" / "a" / "link").symlink_to(saved)
    (tmp_path / "repository" / "out").symlink_to(tmp_path)
    for subfolder in ("a/link", "out/saved"):
        with pytest.raises(ArtifactError, match="leads through a link"):
            EditArtifact.from_pretrained(tmp_path / "repository", subfolder=subfolder)
    (tmp_path / "link").symlink_to(tmp_path)  # the folder itself is the user's choice
    EditArtifact.from_pretrained(tmp_path / "link", subfolder="saved")
    monkeypatch.chdir(saved)
    with pytest.raises(InputError, match="source is empty"):
        EditArtifact.from_pretrained("")


def test_files_over_the_limits_are_refused_before_they_are_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (saved / "edit_config.json").open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no space
    with pytest.raises(ArtifactError, match="more than"):
        EditArtifact.from_pretrained(saved)


def test_an_unlisted_file_beside_the_artifact_is_never_touched(saved: Path) -> None:
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04evil")
    (saved / "setup.py").write_text("raise SystemExit")
    EditArtifact.from_pretrained(saved)


def assert_detected(files: dict[str, bytes], name: str, bits: range) -> None:
    for bit in bits:
        try:
            in_memory({**files, name: flipped(files[name], bit)})
        except ArtifactError:
            continue
        raise AssertionError(f"bit {bit} of {name} was flipped and nobody noticed")


def test_a_flipped_bit_in_any_byte_of_any_file_is_detected(saved: Path) -> None:
    files = covered(saved)
    assert len(files) == 3
    in_memory(files)
    manifest = files.pop("edit_config.json")
    # A stride that is prime to 8: every byte at least once, every bit position as often.
    for bit in range(0, 8 * len(manifest), 7):
        with pytest.raises(ArtifactError):
            FORMAT.read(flipped(manifest, bit))
    config, _ = FORMAT.read(manifest)
    for name, data in files.items():
        for bit in range(0, 8 * len(data), 7):
            damaged = {**files, name: flipped(data, bit)}
            with pytest.raises(ArtifactError, match="was changed"):
                FORMAT.fetch(config, reader_of(damaged))


@pytest.mark.slow
def test_every_flipped_bit_of_every_file_is_detected(saved: Path) -> None:
    files = covered(saved)
    for name, data in files.items():
        assert_detected(files, name, range(8 * len(data)))


@pytest.mark.slow
def test_every_flipped_bit_of_the_card_is_reported(saved: Path) -> None:
    card = (saved / CARD).read_bytes()
    ours = FORMAT.card(FORMAT.read((saved / CONFIG).read_bytes())[0])
    assert ours.state(card) == "as written"
    for bit in range(8 * len(card)):
        assert ours.state(flipped(card, bit)) == "edited", bit


def test_truncation_at_every_fifth_length_and_added_bytes_are_detected(saved: Path) -> None:
    files = covered(saved)
    for name, data in files.items():
        shorter = (data[:length] for length in range(0, len(data), 5))
        for damaged in (*shorter, data[:-1], data + b"\0", data + b"\n", data * 2):
            with pytest.raises(ArtifactError):
                in_memory({**files, name: damaged})


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_a_file_with_random_bytes_exchanged_is_refused(
    data: st.DataObject, shared_files: dict[str, bytes]
) -> None:
    name = data.draw(st.sampled_from(sorted(shared_files)))
    whole = shared_files[name]
    start = data.draw(st.integers(0, len(whole)))
    stop = start + data.draw(st.integers(0, 20))
    damaged = whole[:start] + data.draw(st.binary(max_size=20)) + whole[stop:]
    if damaged == whole:
        return
    with pytest.raises(ArtifactError):
        in_memory({**shared_files, name: damaged})
