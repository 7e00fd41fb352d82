"""A bundle on the Hub: one commit for all members, pulled pinned and checked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_client import LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi
from small_artifacts import altered, small_artifact, small_bundle, small_edit, small_model, tree

from salve_plugin.errors import ArtifactError, HubError, MissingFileError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.hub.push import Pushed
from salve_plugin.store.reference import Reference
from salve_plugin.store.source import Where

Push = Callable[..., Pushed]


@pytest.fixture
def pull_bundle(hub: LoopbackHub, repo_id: str) -> Callable[..., EditBundle]:
    def from_pretrained(**options: Any) -> EditBundle:
        return EditBundle.from_pretrained(repo_id, **{"endpoint": hub.url, **options})

    return from_pretrained


def smaller() -> EditBundle:
    members = small_bundle().members
    return EditBundle.of(small_model(), {name: members[name] for name in ("all", "first")})


def commits(api: HfApi, repo_id: str) -> list[str]:
    return [each.commit_id for each in api.list_repo_commits(repo_id)]


def test_a_bundle_goes_up_in_one_commit_and_comes_back_whole(
    push: Push,
    pull_bundle: Callable[..., EditBundle],
    hub: LoopbackHub,
    api: HfApi,
    repo_id: str,
    tmp_path: Path,
) -> None:
    bundle = small_bundle()
    pushed = push(bundle, tag="v1")
    assert commits(api, repo_id)[0] == pushed.reference.commit
    assert len(commits(api, repo_id)) == 2  # the Hub makes the first one, with .gitattributes
    local = tree(bundle.save_pretrained(tmp_path / "saved"))
    assert set(api.list_repo_files(repo_id)) == {*local, ".gitattributes"}
    for path, data in local.items():
        assert Path(api.hf_hub_download(repo_id, path)).read_bytes() == data

    pulled = pull_bundle(revision="v1")
    assert (pulled.digest, pulled.composition) == (bundle.digest, bundle.composition)
    assert pulled.origin is not None
    assert pulled.origin.reference == pushed.reference
    member = pulled.members["rows"].origin
    assert member is not None
    assert member.reference == Reference(repo_id, pushed.reference.commit, "rows")
    where: Where = {"endpoint": hub.url, "revision": member.reference.commit}
    inside: Where = {**where, "subfolder": "rows"}
    alone = EditArtifact.from_pretrained(repo_id, **inside)
    assert not alone.diff(bundle.members["rows"])
    assert EditBundle.verify(repo_id, **where) == bundle.digest
    assert EditBundle.inspect(repo_id, **where)["origin"] == pushed.reference.to_json()
    hub.clear()
    pull_bundle(revision=pushed.reference.commit)
    assert hub.log() == []  # pinned and warm: no request
    model = small_model()
    pulled.apply_(model)


def test_pushing_again_makes_no_commit_and_a_smaller_bundle_removes_what_is_left_out(
    push: Push, pull_bundle: Callable[..., EditBundle], api: HfApi, repo_id: str
) -> None:
    push(small_bundle(), subfolder="both/here")
    push(small_artifact(), subfolder="both/other")
    assert not push(small_bundle(), subfolder="both/here").created
    push(smaller(), subfolder="both/here")
    assert len(commits(api, repo_id)) == 4
    files = set(api.list_repo_files(repo_id))
    assert not any(path.startswith("both/here/rows/") for path in files)
    assert "both/other/edit_config.json" in files
    assert pull_bundle(subfolder="both/here").digest == smaller().digest
    assert not push(smaller(), subfolder="both/here").created
    with pytest.raises(MissingFileError, match=r"edit_bundle\.json"):
        pull_bundle(subfolder="both/other")


def test_a_member_that_somebody_replaced_in_the_repository_is_refused(
    push: Push, pull_bundle: Callable[..., EditBundle], api: HfApi, repo_id: str, tmp_path: Path
) -> None:
    push(small_bundle())
    other = replace(
        small_artifact(), edit=altered(small_edit(), strength=3.0), assessment=None, pictures=None
    )
    push(other, subfolder="rows")  # a right artifact, only not the bundle's
    with pytest.raises(ArtifactError, match=r"rows/edit_config\.json"):
        pull_bundle()
    push(small_bundle())
    assert pull_bundle().digest == small_bundle().digest
    flipped = bytearray(
        tree(small_bundle().save_pretrained(tmp_path / "saved"))["all/edit.safetensors"]
    )
    flipped[-1] ^= 1
    operation = CommitOperationAdd("all/edit.safetensors", bytes(flipped))
    api.create_commit(repo_id, [operation], commit_message="flip")
    with pytest.raises(ArtifactError, match=r"edit\.safetensors was changed"):
        pull_bundle()


def test_a_damaged_cache_entry_of_a_member_is_downloaded_again(
    push: Push, pull_bundle: Callable[..., EditBundle], api: HfApi, hf_home: Path
) -> None:
    commit = push(small_bundle()).reference.commit
    pull_bundle(revision=commit)
    (cached,) = (hf_home / "hub").glob(f"*/snapshots/{commit}/rows/edit.safetensors")
    blob = cached.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")
    assert pull_bundle(revision=commit).digest == small_bundle().digest


def test_a_bundle_is_committed_whole_or_not_at_all(
    push: Push, pull_bundle: Callable[..., EditBundle], hub: LoopbackHub, api: HfApi, repo_id: str
) -> None:
    first = push(small_bundle()).reference.commit
    hub.fault("status", "/commit/", arg=412)
    with pytest.raises(HubError):
        push(smaller())
    assert commits(api, repo_id)[0] == first
    assert pull_bundle().digest == small_bundle().digest
    hub.clear()
    hub.fault("drop", "/commit/", when="after")
    assert push(smaller()).created
    assert len(commits(api, repo_id)) == 3
    assert pull_bundle().digest == smaller().digest
