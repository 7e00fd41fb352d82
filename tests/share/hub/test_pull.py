"""Pulling an artifact: one commit, checked, from the cache where that is right."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_client import LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi

from salve_plugin.errors import ArtifactError, HubError, InputError, MissingFileError, WriteError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.hub.push import Pushed

Push = Callable[..., Pushed]
Pull = Callable[..., EditArtifact]
FILES = ("edit_config.json", "edit.safetensors", "picture_heat_map.png")


def blobs(hf_home: Path) -> list[Path]:
    """The files of the client's cache that hold content."""
    return sorted(path for path in hf_home.glob("hub/models--*/blobs/*") if path.is_file())


def damage(path: Path) -> None:
    """Invert one bit in the middle of a file of the cache."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.resolve().write_bytes(data)


def test_what_was_pushed_comes_back_whole_and_names_its_commit(
    push: Push, pull: Pull, tiny: EditArtifact, tmp_path: Path
) -> None:
    pushed = push(tiny)
    loaded = pull()
    assert loaded.digest == tiny.digest
    assert loaded.pictures == tiny.pictures
    assert loaded.origin is not None
    assert loaded.origin.reference == pushed.reference
    assert (loaded.origin.revision, loaded.origin.resolved) == ("main", "hub")
    assert not loaded.origin.from_cache
    loaded.save_pretrained(tmp_path / "pulled")
    tiny.save_pretrained(tmp_path / "saved")
    for name in (*FILES, "README.md"):
        assert (tmp_path / "pulled" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_a_revision_is_resolved_once_and_every_file_is_of_that_commit(
    push: Push, pull: Pull, tiny: EditArtifact, hub: LoopbackHub
) -> None:
    commit = push(tiny).reference.commit
    hub.clear()
    pull()
    resolved = [each for each in hub.log() if "/resolve/" in each.path]
    assert [each.path for each in resolved if "/resolve/main/" in each.path] == [resolved[0].path]
    assert all(f"/resolve/{commit}/" in each.path for each in resolved[1:])


def test_a_warm_pull_asks_one_question_and_a_pinned_one_none(
    push: Push, pull: Pull, tiny: EditArtifact, hub: LoopbackHub
) -> None:
    commit = push(tiny).reference.commit
    pull()
    hub.clear()
    again = pull()
    asked = [(each.method, each.path.rpartition("/")[2]) for each in hub.log()]
    assert asked == [("HEAD", "edit_config.json")] * 2  # the second one follows a redirect
    assert again.origin is not None
    assert again.origin.from_cache
    hub.clear()
    pinned = pull(revision=commit)
    assert hub.log() == []
    assert pinned.origin is not None
    assert (pinned.origin.resolved, pinned.origin.from_cache) == ("pinned", True)
    assert pinned.digest == tiny.digest


def test_several_artifacts_live_in_subfolders_of_one_repository(
    push: Push, pull: Pull, tiny: EditArtifact, other: EditArtifact, repo_id: str
) -> None:
    push(tiny, subfolder="edits/one")
    last = push(other, subfolder="edits/two").reference
    assert pull(subfolder="edits/one").digest == tiny.digest
    assert pull(subfolder="edits/two", revision=last.commit).digest == other.digest
    with pytest.raises(MissingFileError, match=r"has no edit_config\.json at 'main'"):
        pull()
    with pytest.raises(MissingFileError, match="edits/three"):
        pull(subfolder="edits/three", revision=last.commit)


def test_a_tag_that_was_moved_shows_in_the_commit_and_a_pin_does_not_follow_it(
    push: Push, pull: Pull, tiny: EditArtifact, other: EditArtifact, api: HfApi, repo_id: str
) -> None:
    first = push(tiny, tag="v1").reference.commit
    assert pull(revision="v1").digest == tiny.digest
    second = push(other).reference.commit
    api.delete_tag(repo_id, tag="v1")
    api.create_tag(repo_id, tag="v1", revision=second)
    moved = pull(revision="v1")
    assert moved.digest == other.digest
    assert moved.origin is not None
    assert moved.origin.reference.commit == second
    assert pull(revision=first).digest == tiny.digest


# --- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("which", range(3))
def test_a_damaged_cache_entry_is_found_and_downloaded_again(
    push: Push, pull: Pull, tiny: EditArtifact, hf_home: Path, which: int, pinned: bool
) -> None:
    commit = push(tiny).reference.commit
    pull()
    path = blobs(hf_home)[which]
    whole = path.read_bytes()
    damage(path)
    revision = commit if pinned else None
    with pytest.raises(ArtifactError, match="read from the cache of the Hub client"):
        pull(revision=revision, local_files_only=True)
    assert pull(revision=revision).digest == tiny.digest
    assert path.read_bytes() == whole
    assert pull(revision=revision, local_files_only=True).digest == tiny.digest


def test_a_partial_snapshot_is_completed_or_reported(
    push: Push, pull: Pull, tiny: EditArtifact, hf_home: Path
) -> None:
    push(tiny)
    pull()
    (entry,) = hf_home.glob("hub/models--*/snapshots/*/edit.safetensors")
    entry.resolve().unlink()
    entry.unlink()
    with pytest.raises(HubError, match=r"download edit\.safetensors") as caught:
        pull(local_files_only=True)
    assert caught.value.reason == "not_cached"
    assert pull().digest == tiny.digest


def test_a_cache_entry_that_leads_out_of_the_cache_is_refused(
    push: Push, pull: Pull, tiny: EditArtifact, hf_home: Path, tmp_path: Path
) -> None:
    commit = push(tiny).reference.commit
    pull()
    (entry,) = hf_home.glob("hub/models--*/snapshots/*/edit_config.json")
    shutil.copy(entry.resolve(), tmp_path / "outside.json")
    entry.unlink()
    entry.symlink_to(tmp_path / "outside.json")
    with pytest.raises(ArtifactError, match="leads out of the cache"):
        pull(revision=commit, local_files_only=True)


def test_nothing_in_the_cache_is_trusted_with_force_download(
    push: Push, pull: Pull, tiny: EditArtifact, hub: LoopbackHub
) -> None:
    commit = push(tiny).reference.commit
    pull()
    hub.clear()
    forced = pull(revision=commit, force_download=True)
    assert forced.origin is not None
    assert not forced.origin.from_cache
    asked = {each.path.rpartition("/")[2] for each in hub.log() if each.method == "HEAD"}
    assert asked == set(FILES)


@contextmanager
def without_rights() -> Iterator[None]:
    """Give up root's right to write everywhere, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_read_only_cache_is_read_and_what_it_lacks_is_reported(
    push: Push, pull: Pull, tiny: EditArtifact
) -> None:
    commit = push(tiny).reference.commit
    with tempfile.TemporaryDirectory() as cache:  # pytest's own folders are for their owner only
        filled, empty = Path(cache) / "filled", Path(cache) / "empty"
        pull(cache_dir=filled)
        empty.mkdir()
        folders = [path for path in (*Path(cache).rglob("*"), Path(cache)) if path.is_dir()]
        for path in folders:
            path.chmod(0o555)
        try:
            with without_rights():
                assert pull(cache_dir=filled, revision=commit).digest == tiny.digest
                assert pull(cache_dir=filled).digest == tiny.digest
                assert pull(cache_dir=filled, local_files_only=True).digest == tiny.digest
                with pytest.raises(WriteError, match="choose another cache_dir"):
                    pull(cache_dir=empty)
        finally:
            for path in folders:
                path.chmod(0o755)


# --- without a network ---------------------------------------------------------------------------


def test_offline_the_cache_answers_and_says_so(
    push: Push,
    pull: Pull,
    tiny: EditArtifact,
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    commit = push(tiny, tag="v1").reference.commit
    pull(revision="v1")
    hub.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = pull(revision="v1")
    assert offline.origin is not None
    assert (offline.origin.resolved, offline.origin.reference.commit) == ("cache", commit)
    with pytest.raises(HubError, match=r"'main' of .* is not in the cache"):
        pull()
    assert hub.log() == []


def test_a_hub_that_cannot_be_reached_is_replaced_by_the_cache_with_a_warning(
    hub_process: LoopbackHub, tiny: EditArtifact, repo_id: str
) -> None:
    url = hub_process.url
    tiny.push_to_hub(repo_id, token="hf_alice", endpoint=url)
    EditArtifact.from_pretrained(repo_id, endpoint=url)
    hub_process.kill()
    with pytest.warns(UserWarning, match=r"cache is used instead: 'main' of .* was commit"):
        loaded = EditArtifact.from_pretrained(repo_id, endpoint=url)
    assert loaded.digest == tiny.digest
    assert loaded.origin is not None
    assert loaded.origin.resolved == "cache"
    for options in ({"revision": "v2"}, {"force_download": True}):
        with pytest.raises(HubError, match="check the connection") as caught:
            EditArtifact.from_pretrained(repo_id, endpoint=url, **options)
        assert caught.value.reason == "unreachable"
    hub_process.restart()
    assert EditArtifact.from_pretrained(repo_id, endpoint=url).digest == tiny.digest


# --- refusals ------------------------------------------------------------------------------------


def test_each_refusal_keeps_its_cause_and_is_never_answered_from_the_cache(
    push: Push, pull: Pull, tiny: EditArtifact, api: HfApi, repo_id: str
) -> None:
    push(tiny, private=True)
    assert pull(token="hf_alice").digest == tiny.digest

    def reason(**options: object) -> tuple[str, int | None]:
        with pytest.raises(HubError) as caught:
            pull(**options)
        return caught.value.reason, caught.value.status

    assert reason(token="hf_nobody") == ("unauthorized", 401)
    assert reason(token="hf_bob") == ("not_found", 404)
    assert reason() == ("not_found", 401)
    assert reason(token="hf_alice", revision="no-such-branch") == ("no_revision", 404)
    api.update_repo_settings(repo_id, private=False, gated="manual")
    assert reason(token="hf_bob") == ("gated", 403)
    api.delete_repo(repo_id)
    assert reason(token="hf_alice") == ("not_found", 404)
    assert pull(local_files_only=True).digest == tiny.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "../main"}, "revision '../main' is not the name"),
        ({"revision": "main\n"}, "is not the name of a branch"),
        ({"subfolder": "../other"}, "is not a path inside"),
        ({"subfolder": "/etc"}, "is not a path inside"),
        ({"token": "hf_with\nnewline"}, "the token is empty or holds spaces"),
        ({"token": ""}, "the token is empty"),
        ({"endpoint": "ftp://hub"}, "endpoint 'ftp://hub' is not an address"),
        ({"endpoint": "http://user:pass@hub"}, "without user names"),
        ({"local_files_only": True, "force_download": True}, "leave one of them out"),
        ({"revision": 3}, "revision 3 is not the name"),
        ({"subfolder": Path("a")}, r"subfolder PosixPath\('a'\) is not a path"),
        ({"token": b"hf_with"}, "or is no text"),
        ({"endpoint": 3}, "is not an address"),
        ({"cache_dir": ""}, '"" is no path'),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_ill_formed_arguments_are_refused_before_anything_is_sent(
    options: dict[str, object], message: str, hf_home: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        EditArtifact.from_pretrained("alice/edit", **options)  # type: ignore[arg-type] # of all kinds
    assert "hf_with" not in str(caught.value)
    assert "pass@" not in str(caught.value)


def test_a_file_that_is_too_long_is_not_downloaded(
    pull: Pull, api: HfApi, repo_id: str, hub: LoopbackHub
) -> None:
    api.create_repo(repo_id)
    content = b" " * (17 * 2**20)
    api.create_commit(
        repo_id, [CommitOperationAdd("edit_config.json", content)], commit_message="huge"
    )
    hub.clear()
    with pytest.raises(ArtifactError, match="17825792 bytes, more than the 16777216"):
        pull()
    assert {each.method for each in hub.log()} == {"HEAD"}


# --- tokens --------------------------------------------------------------------------------------


def test_a_token_is_sent_to_the_hub_only_and_never_told(
    push: Push,
    pull: Pull,
    tiny: EditArtifact,
    hub: LoopbackHub,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    push(tiny, private=True)
    loaded = pull(token="hf_alice")
    with pytest.raises(HubError) as caught:
        pull(token="hf_alice", revision="missing")
    requests = hub.log()
    elsewhere = [each for each in requests if each.host.startswith("localhost")]
    if not hub.xet:  # with Xet nothing is redirected
        assert any("/_cdn/" in each.path for each in elsewhere)
    assert all(each.authorization in ("", "Bearer xet") for each in elsewhere)
    printed = capfd.readouterr()
    told = [caplog.text, printed.out, printed.err, str(caught.value), repr(caught.value)]
    told += [repr(loaded), repr(loaded.origin), *(each.path for each in requests)]
    assert not any("hf_alice" in text for text in told)


def test_the_users_own_token_goes_to_the_users_own_hub_only(
    push: Push,
    pull: Pull,
    tiny: EditArtifact,
    hub: LoopbackHub,
    hf_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    push(tiny)
    hf_home.mkdir(exist_ok=True)
    (hf_home / "token").write_text("hf_bob")

    def sent(**options: object) -> set[str]:
        hub.clear()
        pull(force_download=True, **options)
        return {each.authorization for each in hub.log() if "/resolve/" in each.path}

    assert sent() == {""}
    assert sent(token=False) == {""}
    assert sent(token=True) == {"Bearer hf_bob"}
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # as HF_ENDPOINT does before the import
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert sent() == {"Bearer hf_bob"}
    assert sent(token=False) == {""}
