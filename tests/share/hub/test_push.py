"""Pushing an artifact: one commit on top of what is there, or nothing."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_client import LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi
from small_artifacts import altered, with_edit

from salve_plugin.control.edit import Edit
from salve_plugin.errors import HubConflictError, HubError, InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.hub.access import Access
from salve_plugin.store.hub.push import Destination, Pushed
from salve_plugin.store.hub.push import push as push_change
from salve_plugin.store.place import Existing, FileChange

Push = Callable[..., Pushed]
Pull = Callable[..., EditArtifact]


def commits(api: HfApi, repo_id: str, revision: str = "main") -> list[str]:
    return [each.commit_id for each in api.list_repo_commits(repo_id, revision=revision)]


def content(api: HfApi, repo_id: str, name: str, revision: str | None = None) -> bytes:
    path = api.hf_hub_download(repo_id, name, revision=revision, force_download=True)
    return Path(path).read_bytes()


def test_one_commit_holds_exactly_the_files_of_the_folder(
    push: Push, tiny: EditArtifact, api: HfApi, repo_id: str, tmp_path: Path
) -> None:
    pushed = push(tiny)
    assert pushed.created
    assert commits(api, repo_id)[0] == pushed.reference.commit
    assert len(commits(api, repo_id)) == 2  # the Hub makes the first one, with .gitattributes
    folder = tiny.save_pretrained(tmp_path / "saved")
    local = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(api.list_repo_files(repo_id)) == {*local, ".gitattributes"}
    assert {name: content(api, repo_id, name) for name in local} == local


def test_the_address_of_a_hub_may_end_in_slashes(
    push: Push, tiny: EditArtifact, hub: LoopbackHub, repo_id: str
) -> None:
    hub.clear()
    pushed = push(tiny, endpoint=f"{hub.url}//")
    assert pushed.url == f"{hub.url}/{repo_id}/commit/{pushed.reference.commit}"
    read = EditArtifact.from_pretrained(repo_id, endpoint=f"{hub.url}/")
    assert read.digest == tiny.digest
    assert not [each.path for each in hub.log() if each.path.startswith("//")]


def test_pushing_what_is_there_makes_no_commit(
    push: Push, tiny: EditArtifact, api: HfApi, repo_id: str
) -> None:
    first = push(tiny)
    again = push(tiny)
    assert not again.created
    assert again.reference == first.reference
    assert len(commits(api, repo_id)) == 2


def test_peoples_words_and_files_stay_and_the_older_edits_own_go(
    push: Push, tiny: EditArtifact, other: EditArtifact, api: HfApi, repo_id: str
) -> None:
    push(tiny)
    words = b"---\nlicense: mit\ntags:\n- birds\n---\n# My words\n"
    operations = [CommitOperationAdd("README.md", words), CommitOperationAdd("notes.txt", b"mine")]
    api.create_commit(repo_id, operations, commit_message="words")
    push(other)
    card = content(api, repo_id, "README.md").decode()
    assert card.endswith("---\n# My words\n")
    assert "license: mit" in card
    assert "- birds" in card
    assert "- salve_plugin" in card
    files = set(api.list_repo_files(repo_id))
    assert "notes.txt" in files
    assert "picture_heat_map.png" not in files


def test_a_picture_that_somebody_replaced_is_not_removed(
    push: Push, tiny: EditArtifact, other: EditArtifact, api: HfApi, repo_id: str
) -> None:
    push(tiny)
    operation = CommitOperationAdd("picture_heat_map.png", b"somebody's own")
    api.create_commit(repo_id, [operation], commit_message="replace")
    push(other)
    assert content(api, repo_id, "picture_heat_map.png") == b"somebody's own"


def test_a_damaged_cache_never_reaches_the_hub(
    push: Push, tiny: EditArtifact, other: EditArtifact, api: HfApi, repo_id: str, hf_home: Path
) -> None:
    push(tiny)
    words = b"---\nlicense: mit\n---\n# My words\n"
    api.create_commit(repo_id, [CommitOperationAdd("README.md", words)], commit_message="words")
    Path(api.hf_hub_download(repo_id, "README.md")).resolve().write_bytes(
        words.replace(b"words", b"worms")
    )
    push(other)
    assert content(api, repo_id, "README.md").endswith(b"# My words\n")


def test_a_branch_and_a_subfolder_can_be_pushed_to(
    push: Push, pull: Pull, tiny: EditArtifact, api: HfApi, repo_id: str
) -> None:
    api.create_repo(repo_id)
    api.create_branch(repo_id, branch="trial")
    pushed = push(tiny, revision="trial", subfolder="a/b", commit_message="a trial")
    assert commits(api, repo_id, "trial")[0] == pushed.reference.commit
    assert api.list_repo_commits(repo_id, revision="trial")[0].title == "a trial"
    assert len(commits(api, repo_id)) == 1
    assert pull(revision="trial", subfolder="a/b").digest == tiny.digest
    with pytest.raises(HubError, match="check the name of the branch") as caught:
        push(tiny, revision="no-such-branch")
    assert caught.value.reason == "no_revision"


def test_a_tag_is_set_once_and_never_moved(
    push: Push, pull: Pull, tiny: EditArtifact, other: EditArtifact, api: HfApi, repo_id: str
) -> None:
    first = push(tiny, tag="v1")
    assert pull(revision="v1").origin.reference == first.reference  # type: ignore[union-attr] # pulled
    assert push(tiny, tag="v1").reference == first.reference
    with pytest.raises(HubConflictError, match=r"tag 'v1' of .* names commit") as caught:
        push(other, tag="v1")
    assert caught.value.winner == first.reference.commit
    assert commits(api, repo_id)[0] == first.reference.commit
    assert push(other, tag="v2").created
    assert pull(revision="v1").digest == tiny.digest


def test_a_pull_request_leaves_the_branch_alone_and_is_made_once(
    push: Push, pull: Pull, tiny: EditArtifact, other: EditArtifact, api: HfApi, repo_id: str
) -> None:
    push(tiny)
    request = push(other, create_pr=True, commit_message="please")
    assert request.pull_request == "refs/pr/1"
    assert request.url.endswith("/discussions/1")
    assert push(other, create_pr=True).reference == request.reference
    assert len(api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or []) == 1
    assert pull().digest == tiny.digest
    assert pull(revision="refs/pr/1").digest == other.digest


def test_a_private_artifact_never_goes_to_a_public_repository(
    push: Push, tiny: EditArtifact, api: HfApi, repo_id: str
) -> None:
    api.create_repo(repo_id)
    with pytest.raises(InputError, match="is public, private=True was asked for; nothing"):
        push(tiny, private=True)
    assert len(commits(api, repo_id)) == 1
    assert push(tiny, private=False).created


@pytest.mark.parametrize(
    ("token", "reason"),
    [("hf_alice-read", "forbidden"), ("hf_bob", "forbidden"), ("hf_nobody", "unauthorized")],
)
def test_without_the_right_to_write_nothing_happens(
    push: Push, tiny: EditArtifact, api: HfApi, repo_id: str, token: str, reason: str
) -> None:
    api.create_repo(repo_id)
    with pytest.raises(HubError) as caught:
        push(tiny, token=token)
    assert caught.value.reason == reason
    assert len(commits(api, repo_id)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"create_pr": True, "tag": "v1"}, "leave out tag or create_pr"),
        ({"create_pr": True, "revision": "trial"}, "leave out revision or create_pr"),
        ({"commit_message": " "}, "commit_message .* is empty"),
        ({"subfolder": "a//b"}, "not a path inside"),
        ({"tag": "a b"}, "is not the name of a branch or tag"),
        ({"tag": 3}, "is not the name of a branch or tag"),
        ({"commit_message": 3}, "commit_message 3 is empty or no text"),
        ({"cache_dir": "here"}, r"there is no argument 'cache_dir'; there are \['revision'"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_contradictions_are_refused_before_anything_is_sent(
    push: Push, tiny: EditArtifact, hub: LoopbackHub, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        push(tiny, **options)
    assert hub.log() == []


@pytest.mark.usefixtures("untyped")
def test_a_name_that_no_repository_can_have_is_refused(tiny: EditArtifact, hf_home: Path) -> None:
    for name in ("edit", "me/a/b", "me/../a", "me/a--b", "me/" + "a" * 97, "me/a\n", None):
        with pytest.raises(InputError, match="is not the name of a Hub repository"):
            tiny.push_to_hub(name)  # type: ignore[arg-type] # None is none


# --- others push, too ----------------------------------------------------------------------------


def test_a_commit_in_between_is_a_conflict_that_names_it(
    tiny: EditArtifact, api: HfApi, repo_id: str, hub: LoopbackHub
) -> None:
    api.create_repo(repo_id)
    target = Destination(repo_id, access=Access(hub.url, "hf_alice"))
    theirs: list[str] = []

    def plan(existing: Existing) -> FileChange:
        operation = CommitOperationAdd("theirs.txt", b"theirs")
        theirs.append(api.create_commit(repo_id, [operation], commit_message="theirs").oid)
        return FileChange({"ours.txt": b"ours"})

    with pytest.raises(HubConflictError, match="'theirs' by alice") as caught:
        push_change(target, plan, "ours")
    assert caught.value.winner == theirs[0]
    assert "ours.txt" not in api.list_repo_files(repo_id)


def test_of_four_at_once_one_wins_and_three_learn_who(
    tiny: EditArtifact, tiny_edit: Edit, api: HfApi, repo_id: str, hub: LoopbackHub
) -> None:
    api.create_repo(repo_id)
    target = Destination(repo_id, access=Access(hub.url, "hf_alice"))
    start = threading.Barrier(4)
    won: list[Pushed] = []
    lost: list[HubConflictError] = []

    def run(strength: float) -> None:
        artifact = with_edit(tiny, altered(tiny_edit, strength=strength))

        def plan(existing: Existing) -> FileChange:
            change = artifact.planned(existing)
            start.wait()
            return change

        try:
            won.append(push_change(target, plan, f"strength {strength}"))
        except HubConflictError as error:
            lost.append(error)

    threads = [threading.Thread(target=run, args=(float(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [error.winner for error in lost] == [won[0].reference.commit] * 3
    assert commits(api, repo_id)[0] == won[0].reference.commit
    assert len(commits(api, repo_id)) == 2
