"""The model card: for people, so theirs to edit."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from salve_plugin.cli.shared import find
from salve_plugin.control.base import Base
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import LowRankMap
from salve_plugin.control.provenance import Provenance
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.card import MAX_CARD_BYTES, read_metadata, with_metadata


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_a_card_has_valid_metadata_and_the_numbers_before_and_after(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.library_name == "salve_plugin"
    assert "salve_plugin" in loaded.data.tags
    assert loaded.data.base_model is None
    assert loaded.data.license is None
    assert "| accuracy of ü\\|x | 0.75 | 0.25 |" in loaded.text
    assert "only ü\\|x (1), &lt;b&gt; (2)" in loaded.text
    assert "| ü\\|x (1) | 2 | 0% | 50% | 1.25 | 1.25 | ∞ |" in loaded.text
    assert "![heat map](picture_heat_map.png)\n\n*heat map*\n" in loaded.text
    assert tiny.digest in loaded.text


def test_the_plot_of_a_map_is_described_by_its_amount(
    tiny_edit: Edit, tiny_crit: AlphaCrit, png: bytes, tmp_path: Path
) -> None:
    axis = torch.eye(4)[:, :1]
    for scale, line in ((0.25, "The dashed line is this edit, 1 − λ = 0.75."), (1.0, None)):
        operator = LowRankMap(axis, axis, torch.zeros(1), scale)
        edit = replace(tiny_edit, operator=operator, provenance=Provenance())
        critical = replace(tiny_crit, family=edit.family)
        artifact = EditArtifact(edit, alpha_crit=critical, pictures={"alpha-crit": png})
        artifact.save_pretrained(tmp_path / str(scale))
        text = card(tmp_path / str(scale))
        assert "by the amount 1 − λ. At 0" in text
        assert "α" not in text
        # Where the edit does nothing there is no line.
        assert line in text if line else "dashed" not in text


def test_base_model_and_license_appear_only_when_known(tiny_edit: Edit, tmp_path: Path) -> None:
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
    # Saving again changes nothing any more; other contents take the results that were ours.
    tiny.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == once
    EditArtifact(tiny_edit).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes().endswith(body.encode())
    after = metadata_load(tmp_path / "README.md")
    assert after is not None
    expected = data["model-index"] if existing == PEOPLES else None
    assert after.pop("model-index", None) == expected
    assert after == {key: value for key, value in data.items() if key != "model-index"}
    assert EditArtifact.inspect(tmp_path)["card"] == "edited"


def test_a_text_is_kept_where_there_is_no_place_for_temporary_files(
    tiny: EditArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    tiny.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\n")
    assert text.endswith("\n---\n# Mine\n")


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
    assert EditArtifact.inspect(tmp_path)["card"] == "edited"
    EditArtifact(tiny_edit).save_pretrained(tmp_path)
    assert "license: mit" in card(tmp_path)
    assert EditArtifact(tiny_edit).digest in card(tmp_path)
    assert "four images" not in card(tmp_path)


def results(folder: Path) -> list[EvalResult]:
    found = ModelCard.load(folder / "README.md").data.eval_results
    assert found is not None
    return list(found)


def test_the_measures_after_the_edit_are_results_that_the_hub_client_reads(
    tiny_edit: Edit, tmp_path: Path
) -> None:
    artifact = EditArtifact(
        tiny_edit,
        evaluation={
            "before": {"accuracy": 0.75, "target accuracy": 1, "<odd>\n|name|": 2.5},
            "after": {"accuracy": 0.5, "target accuracy": 0, "<odd>\n|name|": 1e-7},
        },
        data={"name": "Imagenette", "type": "frgfm/imagenette", "config": "320px",
              "split": "validation", "revision": "abc", "images": 4},
    )  # fmt: skip
    artifact.save_pretrained(tmp_path)
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.model_name == "Tiny with one feature suppressed"
    about: dict[str, Any] = {
        "task_type": "image-classification",
        "task_name": "Image Classification",
        "dataset_type": "frgfm/imagenette",
        "dataset_name": "Imagenette",
        "dataset_config": "320px",
        "dataset_split": "validation",
        "dataset_revision": "abc",
    }
    measured = [
        ("odd_name", "<odd> |name| after the edit", 1e-7),
        ("accuracy", "accuracy after the edit", 0.5),
        ("target_accuracy", "target accuracy after the edit", 0),
    ]
    expected = [
        EvalResult(**about, metric_type=kind, metric_name=name, metric_value=value)
        for kind, name, value in measured
    ]
    assert results(tmp_path) == expected
    again = ModelCardData(**read_metadata((tmp_path / "README.md").read_bytes()))
    assert again.eval_results == expected
    assert str(again) == str(loaded.data)
    # What the Hub client writes back is what was there.
    loaded.save(tmp_path / "README.md")
    assert EditArtifact.inspect(tmp_path)["card"] == "as written"


@pytest.mark.parametrize("data", [None, {"name": None}, {"name": "  "}, {"images": 4}])
def test_measures_on_unnamed_data_are_no_results(
    tiny_edit: Edit, data: dict[str, str | int | None] | None, tmp_path: Path
) -> None:
    measures = {"before": {"accuracy": 1}, "after": {"accuracy": 0}}
    EditArtifact(tiny_edit, evaluation=measures, data=data).save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None
    assert "| accuracy | 1 | 0 |" in card(tmp_path)


def test_data_that_names_no_dataset_of_the_hub_link_to_none(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    (result,) = results(tmp_path)
    assert (result.dataset_name, result.dataset_type) == ("four images", "custom")


def measured(edit: Edit, value: float, name: str = "accuracy") -> EditArtifact:
    return EditArtifact(
        edit,
        evaluation={"before": {name: 1}, "after": {name: value}},
        data={"name": "digits", "split": "test"},
    )


OTHERS_RESULTS = """---
model-index:
- name: My model
  results:
  - task: {type: image-classification}
    dataset: {type: custom, name: digits, split: test}
    metrics:
    - {type: accuracy, value: 0.9, name: accuracy by hand, verified: false}
    - {type: accuracy, value: 0.1, name: accuracy after the edit}
    source: {name: my table, url: 'https://example.org'}
- name: My other model
  results: []
---
text
"""


def test_results_of_people_stay_and_ours_are_replaced_where_they_stand(
    tiny_edit: Edit, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(OTHERS_RESULTS)
    measured(tiny_edit, 0.5).save_pretrained(tmp_path)
    by_hand, ours = results(tmp_path)
    assert (by_hand.metric_name, by_hand.metric_value) == ("accuracy by hand", 0.9)
    assert by_hand.verified is False
    assert by_hand.source_url == "https://example.org"
    assert (ours.metric_name, ours.metric_value) == ("accuracy after the edit", 0.5)
    once = card(tmp_path)
    assert "name: My model" in once
    measured(tiny_edit, 0.5).save_pretrained(tmp_path)
    assert card(tmp_path) == once
    measured(tiny_edit, 0.25, "recall").save_pretrained(tmp_path)
    assert [(each.metric_name, each.metric_value) for each in results(tmp_path)] == [
        ("accuracy by hand", 0.9),
        ("recall after the edit", 0.25),
    ]
    EditArtifact(tiny_edit).save_pretrained(tmp_path)
    assert [each.metric_name for each in results(tmp_path)] == ["accuracy by hand"]


@pytest.mark.parametrize(
    "index", ["broken", [], [{"name": "x"}], [{"name": "x", "results": [1]}], {"name": "x"}]
)
def test_results_that_nobody_can_read_are_left_alone(
    tiny_edit: Edit, index: object, tmp_path: Path
) -> None:
    from huggingface_hub.repocard import metadata_load, metadata_save

    metadata_save(tmp_path / "README.md", {"model-index": index})
    measured(tiny_edit, 0.5).save_pretrained(tmp_path)
    data = metadata_load(tmp_path / "README.md")
    assert data is not None
    if index:
        assert data["model-index"] == index
    else:
        assert len(results(tmp_path)) == 1


def of_base(edit: Edit, **known: object) -> EditArtifact:
    description = {"architecture": "resnet18", **known}
    return EditArtifact(replace(edit, base=Base(description, edit.base.tensors)))


@pytest.mark.parametrize(
    ("known", "license", "name"),
    [
        ("Apache-2.0", "apache-2.0", None),
        ("apple-ascl", "apple-ascl", None),
        ("dinov3-license", "other", "dinov3-license"),
        ("My own: *terms*", "other", "my-own-terms"),
        ("", None, None),
        ("other", None, None),
        ("***", None, None),
        (None, None, None),
        (["mit"], None, None),
        ({"mit": 1}, None, None),
    ],
)
def test_a_license_is_one_of_the_hubs_or_other_with_its_name(
    tiny_edit: Edit, known: object, license: str | None, name: str | None, tmp_path: Path
) -> None:
    of_base(tiny_edit, license=known).save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.license_name) == (license, name)


@pytest.mark.parametrize("base", ["resnet18", "a/b/c", "../x", 7, ["timm/x"], {"timm/x": 1}, ""])
def test_what_is_no_repository_is_no_base_model(
    tiny_edit: Edit, base: object, tmp_path: Path
) -> None:
    of_base(tiny_edit, hf_hub_id=base).save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model is None
    assert "base_model_relation" not in data


def test_what_was_ours_follows_the_artifact_and_what_people_changed_stays(
    tiny_edit: Edit, tmp_path: Path
) -> None:
    of_base(tiny_edit, hf_hub_id="timm/one", license="dinov3-license").save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(card(tmp_path) + "\nMy words.\n")
    of_base(tiny_edit, hf_hub_id="timm/two", license="mit").save_pretrained(tmp_path)
    data = ModelCard.load(path).data
    assert (data.base_model, data.license, data.license_name) == ("timm/two", "mit", None)
    path.write_text(card(tmp_path).replace("license: mit", "license: cc0-1.0\nmine: [1, 2]"))
    of_base(tiny_edit, license="apache-2.0").save_pretrained(tmp_path)
    data = ModelCard.load(path).data
    assert (data.base_model, data.license, data["mine"]) == (None, "cc0-1.0", [1, 2])
    assert card(tmp_path).endswith("\nMy words.\n")


def test_a_fresh_card_is_what_the_hub_client_would_write(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    fresh = path.read_bytes()
    assert with_metadata(fresh, read_metadata(fresh)) == fresh


def test_one_tag_in_place_of_a_list_is_kept(tiny: EditArtifact, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntags: mine\n---\n")
    tiny.save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.tags[:2] == ["mine", "salve_plugin"]


@pytest.mark.parametrize("step", [53, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_bit_of_a_fresh_card_is_reported(
    tiny: EditArtifact, step: int, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    fresh = (tmp_path / "README.md").read_bytes()
    form = EditArtifact.format
    ours = form.card(form.read((tmp_path / "edit_config.json").read_bytes())[0])
    assert ours.state(fresh) == "as written"
    for place in range(0, 8 * len(fresh), step):
        flipped = bytearray(fresh)
        flipped[place // 8] ^= 1 << place % 8
        assert ours.state(bytes(flipped)) == "edited", place


def test_a_changed_card_is_reported_and_the_artifact_is_none_the_worse(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    fresh = path.read_bytes()
    for changed in (fresh[:-1], fresh + b"\n", b"\xef\xbb\xbf" + fresh, b"", fresh[9:]):
        path.write_bytes(changed)
        assert EditArtifact.inspect(tmp_path)["card"] == "edited"
        assert EditArtifact.from_pretrained(tmp_path).digest == tiny.digest
    path.write_bytes(fresh)
    assert EditArtifact.inspect(tmp_path)["card"] == "as written"


def test_what_cannot_be_read_as_a_card_is_none_of_the_artifacts_business(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    path = tiny.save_pretrained(tmp_path) / "README.md"
    path.write_bytes(b"x" * (MAX_CARD_BYTES + 1))
    assert EditArtifact.inspect(tmp_path)["card"] == "unknown"
    path.unlink()
    path.symlink_to("edit_config.json")
    assert EditArtifact.inspect(tmp_path)["card"] == "unknown"
    path.unlink()
    path.mkdir()
    assert EditArtifact.inspect(tmp_path)["card"] == "unknown"
    assert find(tmp_path).digest == tiny.digest


def test_the_card_says_how_to_pull_one_commit_from_the_hub(
    tiny: EditArtifact, tiny_edit: Edit, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    assert 'EditArtifact.from_pretrained("user/repo", revision="<commit>")' in card(tmp_path)
    assert 'EditArtifact.verify("user/repo", revision="<commit>")' in card(tmp_path)
    assert "artifact.revert_(model)" in card(tmp_path)
    EditArtifact(tiny_edit).save_pretrained(tmp_path)
    assert "artifact.edit.revert_(model)" in card(tmp_path)


@pytest.mark.parametrize("broken", [b"---\na: [\n---\n", b"---\njust text\n---\n", b"\xff\xfe"])
def test_unreadable_metadata_are_reported_and_nothing_is_written(
    tiny: EditArtifact, broken: bytes, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_bytes(broken)
    with pytest.raises(InputError, match=r"README\.md"):
        tiny.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_bytes() == broken


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
