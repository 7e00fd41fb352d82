"""The model card: for people, so theirs to edit."""

from dataclasses import replace
from pathlib import Path

import pytest

from salve_plugin.control.base import Base
from salve_plugin.control.edit import Edit
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share.artifact import EditArtifact


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_a_card_has_valid_metadata_and_the_numbers_before_and_after(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    tiny.save_pretrained(tmp_path)
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.library_name == "salve_plugin"
    assert "salve_plugin" in loaded.data.tags
    assert loaded.data.base_model is None
    assert loaded.data.license is None
    assert "| accuracy of ü\\|x | 0.75 | 0.25 |" in loaded.text
    assert "only ü\\|x (1), &lt;b&gt; (2)" in loaded.text
    assert "| ü\\|x (1) | 2 | 0% | 50% | 1.25 | 1.25 | ∞ |" in loaded.text
    assert "![heat_map](picture_heat_map.png)" in loaded.text
    assert tiny.digest in loaded.text


def test_base_model_and_license_appear_only_when_known(tiny_edit: Edit, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    known = {"architecture": "resnet18", "hf_hub_id": "timm/resnet18.a1_in1k", "license": "mit"}
    edit = replace(tiny_edit, base=Base(known, tiny_edit.base.tensors))
    EditArtifact(edit).save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.base_model_relation, data.license) == (
        "timm/resnet18.a1_in1k",
        "adapter",
        "mit",
    )


PEOPLES = (
    "---\r\n# a comment\r\nlicense: 'cc0-1.0'\r\ntags: [mine]\r\nmodel-index: broken\r\n---\r\n"
    "\r\n# My words  \r\n---\r\nund Umlaute: ü\r\n"
)


@pytest.mark.parametrize(
    "existing",
    [PEOPLES, "no metadata, \ttrailing spaces  \n\n\n", "", "---\n---\ntext", "\ufeffBOM"],
)
def test_an_existing_body_is_kept_to_the_byte_and_only_metadata_are_added(
    tiny: EditArtifact, tiny_edit: Edit, existing: str, tmp_path: Path
) -> None:
    from huggingface_hub.repocard import metadata_load

    (tmp_path / "README.md").write_bytes(existing.encode())
    tiny.save_pretrained(tmp_path)
    once = (tmp_path / "README.md").read_bytes()
    body = existing.removeprefix("\ufeff")
    if body.startswith("---"):
        body = body.split("---", 2)[2].lstrip("\r\n")
    assert once.endswith(body.encode())
    data = metadata_load(tmp_path / "README.md")
    assert data is not None
    assert data["library_name"] == "salve_plugin"
    if existing == PEOPLES:
        assert data["license"] == "cc0-1.0"
        assert data["tags"][0] == "mine"
        assert data["model-index"] == "broken"
        assert b"\r\n\r\n# My words" in once
    # Saving other contents changes nothing any more.
    EditArtifact(tiny_edit).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == once
    assert EditArtifact.inspect(tmp_path)["card"] == "edited"


def test_a_text_that_nobody_edited_follows_the_artifact(
    tiny: EditArtifact, tiny_edit: Edit, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    other = EditArtifact(tiny_edit)
    other.save_pretrained(tmp_path)
    assert other.digest in card(tmp_path)
    assert tiny.digest not in card(tmp_path)
    assert EditArtifact.inspect(tmp_path)["card"] == "as written"


def test_metadata_added_by_people_to_our_text_stay(
    tiny: EditArtifact, tiny_edit: Edit, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(card(tmp_path).replace("---\n", "---\nlicense: mit\n", 1))
    EditArtifact(tiny_edit).save_pretrained(tmp_path)
    assert "license: mit" in card(tmp_path)
    assert EditArtifact(tiny_edit).digest in card(tmp_path)


@pytest.mark.parametrize("broken", [b"---\na: [\n---\n", b"---\njust text\n---\n", b"\xff\xfe"])
def test_unreadable_metadata_are_reported_and_nothing_is_written(
    tiny: EditArtifact, broken: bytes, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_bytes(broken)
    with pytest.raises(InputError, match=r"README\.md"):
        tiny.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_bytes() == broken


def test_a_card_that_is_a_link_is_refused(tiny: EditArtifact, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").symlink_to(tmp_path / "mine")
    with pytest.raises(ArtifactError, match="link"):
        tiny.save_pretrained(tmp_path / "folder")
    assert (tmp_path / "mine").read_text() == "mine"


def test_names_cannot_break_out_of_the_card(tiny_edit: Edit, tmp_path: Path) -> None:
    nasty = "x`|\n\n# <script>[y](http://z)"
    artifact = EditArtifact(
        tiny_edit,
        evaluation={"before": {nasty: 1}, "after": {nasty: 0}},
        labels=["a", nasty, "c"],
    )
    artifact.save_pretrained(tmp_path)
    text = card(tmp_path)
    assert "<script>" not in text
    assert "\n# <" not in text
    assert "|\n\n#" not in text.replace("## ", "")
    assert "x'\\| # &lt;script&gt;\\[y](http://z)" in text
