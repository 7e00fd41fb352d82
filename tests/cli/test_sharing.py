"""`salve push`, `pull`, `verify` and `inspect` between a folder and a Hub."""

import re
from pathlib import Path

import pytest
import torch
from command import run
from hub_client import LoopbackHub
from small_artifacts import WEIGHT, altered, small_edit, small_model, with_edit

from salve_plugin.cli import main
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def artifact() -> EditArtifact:
    return EditArtifact(small_edit(), pristine={"fc.weight": WEIGHT[1:]})


@pytest.fixture
def folder(artifact: EditArtifact, tmp_path: Path) -> Path:
    return artifact.save_pretrained(tmp_path / "edit")


def test_a_folder_goes_to_the_hub_and_comes_back_the_same(
    default_hub: LoopbackHub,
    hf_home: Path,
    repo_id: str,
    artifact: EditArtifact,
    folder: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    hf_home.mkdir(exist_ok=True)
    (hf_home / "token").write_text("hf_alice")  # as `hf auth login` leaves it
    options = ("--subfolder", "edits/a", "--private", "--tag", "v1", "--message", "my edit")
    status, pushed = run(capsys, "push", folder, repo_id, *options)
    assert (status, pushed["created"], pushed["tag"]) == (0, True, "v1")
    assert pushed["digest"] == artifact.digest
    where = ("--subfolder", "edits/a", "--revision", "v1")
    status, pulled = run(capsys, "pull", repo_id, "--out", tmp_path / "back", *where)
    assert (status, pulled["commit"], pulled["from_cache"]) == (0, pushed["commit"], False)
    back = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert back == {path.name: path.read_bytes() for path in folder.iterdir()}
    status, verified = run(capsys, "verify", repo_id, *where)
    assert status == 0
    assert verified == {
        "kind": "edit",
        "digest": artifact.digest,
        "card": "as written",
        "commit": pushed["commit"],
    }
    default_hub.clear()
    offline = ("--revision", pushed["commit"], "--subfolder", "edits/a", "--offline")
    status, inspected = run(capsys, "inspect", repo_id, *offline)
    assert (status, inspected["digest"]) == (0, artifact.digest)
    assert inspected["origin"]["commit"] == pushed["commit"]
    assert default_hub.log() == []
    status, again = run(capsys, "push", folder, repo_id, "--subfolder", "edits/a")
    assert (status, again["created"]) == (0, False)


def test_a_pull_request_and_a_branch_can_be_pushed_to(
    default_hub: LoopbackHub,
    repo_id: str,
    artifact: EditArtifact,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert run(capsys, "push", folder, repo_id)[0] == 0
    other = with_edit(artifact, altered(artifact.edit, strength=3.0))
    other.save_pretrained(tmp_path / "other")
    status, pushed = run(capsys, "push", tmp_path / "other", repo_id, "--create-pr")
    assert (status, pushed["pull_request"]) == (0, "refs/pr/1")
    assert run(capsys, "verify", repo_id)[1]["digest"] == artifact.digest
    where = ("--revision", "refs/pr/1")
    assert run(capsys, "verify", repo_id, *where)[1]["digest"] == other.digest
    status, failed = run(capsys, "push", folder, repo_id, "--revision", "no-such-branch")
    assert (status, failed["error"]) == (1, "HubError")


def test_refusals_end_with_status_1_and_say_why(
    default_hub: LoopbackHub, repo_id: str, folder: Path, capsys: Capture
) -> None:
    status, failed = run(capsys, "push", folder, repo_id)
    assert (status, failed["error"]) == (1, "HubError")
    assert "token" in failed["message"]
    assert run(capsys, "verify", repo_id)[1]["error"] == "HubError"
    (folder / "edit.safetensors").write_bytes(b"x")
    for command in (("verify", folder), ("push", folder, repo_id)):
        status, failed = run(capsys, *command)
        assert (status, failed["error"]) == (1, "ArtifactError")
        assert "edit.safetensors" in failed["message"]


def test_people_see_a_table_and_a_progress_bar_where_there_is_something_to_wait_for(
    default_hub: LoopbackHub,
    repo_id: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    with pytest.raises(SystemExit):
        main(["push", str(folder), repo_id])
    shown = capfd.readouterr()
    assert "pushed" in shown.out
    assert repo_id in shown.out
    assert "hf_alice" not in shown.out + shown.err
    assert re.search(r"100%|it/s", shown.err)
    with pytest.raises(SystemExit):
        main(["push", str(folder), repo_id + "-2", "--json"])
    assert "%" not in capfd.readouterr().err


def test_people_are_told_that_an_edited_card_does_not_travel_along(
    default_hub: LoopbackHub,
    repo_id: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert run(capsys, "push", folder, repo_id)[1]["card"] == "as written"
    (folder / "README.md").write_text("# Mine\n")
    assert run(capsys, "push", folder, repo_id)[1]["card"] == "edited"
    with pytest.raises(SystemExit):
        main(["push", str(folder), repo_id])
    assert f"README.md of {folder} was edited" in capsys.readouterr().err
    assert run(capsys, "pull", repo_id, "--out", tmp_path / "x")[1]["card"] == "as written"
    with pytest.raises(SystemExit):
        main(["pull", repo_id, "--out", str(tmp_path / "x")])
    assert "was edited" not in capsys.readouterr().err


def test_bundles_and_dictionaries_are_shared_by_the_same_commands(
    default_hub: LoopbackHub,
    repo_id: str,
    artifact: EditArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    bundle = EditBundle.of(small_model(), {"one": artifact})
    tensors = {
        "atoms": torch.eye(4),
        "encoder_weight": torch.eye(4),
        "encoder_bias": torch.zeros(4),
        "decoder_bias": torch.zeros(4),
    }
    dictionary = Dictionary(tensors, create("l1", {}), artifact.edit.site)
    things: dict[str, tuple[EditBundle | Dictionary, str]] = {
        "bundle": (bundle, bundle.digest),
        "dictionary": (dictionary, dictionary.digest),
    }
    for kind, (thing, digest) in things.items():
        folder = thing.save_pretrained(tmp_path / kind)
        repo = f"{repo_id}-{kind}"
        status, pushed = run(capsys, "push", folder, repo)
        assert (status, pushed["kind"], pushed["digest"]) == (0, kind, digest)
        status, pulled = run(capsys, "pull", repo, "--out", tmp_path / f"{kind}-back")
        assert (status, pulled["commit"]) == (0, pushed["commit"])
        for source in (folder, tmp_path / f"{kind}-back", repo):
            assert run(capsys, "verify", source)[1]["digest"] == digest
            assert run(capsys, "inspect", source)[1]["digest"] == digest
    (tmp_path / "empty").mkdir()
    status, failed = run(capsys, "verify", tmp_path / "empty")
    assert (status, failed["error"]) == (1, "MissingFileError")
