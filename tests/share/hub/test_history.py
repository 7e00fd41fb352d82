"""The list of commits, which is asked for after a failed push, cannot keep us for ever."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hub_client import LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi

from salve_plugin.errors import HubError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.hub.history import MAX_PAGES, commits_since
from salve_plugin.store.hub.patience import WAITS
from salve_plugin.store.hub.push import Pushed

Push = Callable[..., Pushed]

pytestmark = pytest.mark.parametrize("hub", ["plain"], indirect=True)

COMMITS = "/commits/"


def note(api: HfApi, repo_id: str, number: int, revision: str = "main") -> str:
    """Commit something of somebody else's."""
    operation = CommitOperationAdd(f"notes/{number}", str(number).encode())
    info = api.create_commit(
        repo_id, [operation], commit_message=f"note {number}", revision=revision
    )
    return str(info.oid)


def endless(hub: LoopbackHub, repo_id: str, page: list[Any], host: str | None = None) -> None:
    """Let every page of the list be this one, and name another one after it."""
    link = f'<{host or hub.url}/api/models/{repo_id}/commits/main?p=7>; rel="next"'
    body = json.dumps(page)
    hub.fault("json", COMMITS, times=10_000, body=body, headers={"Link": link})


def pages(hub: LoopbackHub) -> int:
    return sum(COMMITS in each.path for each in hub.log())


ENTRY = {"id": "c0ffee" * 6 + "c0ff", "title": "x", "authors": [{"user": "mallory"}]}


@pytest.mark.parametrize("page", [[], [ENTRY]], ids=["empty", "full"])
def test_an_endless_list_ends_a_push_with_an_error_and_the_same_call_works_after(
    page: list[Any], push: Push, tiny: EditArtifact, other: EditArtifact, hub: LoopbackHub,
    repo_id: str,
) -> None:  # fmt: skip
    push(tiny)
    hub.clear()
    hub.fault("lost", "/commit/main$")
    endless(hub, repo_id, page)
    with pytest.raises(HubError, match="could not be asked whether") as caught:
        push(other)
    assert f"goes on after {MAX_PAGES} pages" in str(caught.value.__cause__)
    assert pages(hub) == MAX_PAGES * (len(WAITS) + 1)
    hub.clear()
    assert not push(other).created  # it was made, and is not made twice


def test_an_endless_list_ends_a_pull_request_too(
    push: Push, tiny: EditArtifact, other: EditArtifact, hub: LoopbackHub, repo_id: str
) -> None:
    push(tiny)
    push(other, create_pr=True)
    hub.clear()
    endless(hub, repo_id, [])
    with pytest.raises(HubError, match=f"goes on after {MAX_PAGES} pages"):
        push(other, create_pr=True)
    hub.clear()
    endless(hub, repo_id, [ENTRY])  # two commits are more than the one of such a pull request
    assert push(other, create_pr=True).created
    assert pages(hub) == 2


def test_a_list_does_not_go_on_at_another_host(
    push: Push, tiny: EditArtifact, hub: LoopbackHub, repo_id: str, api: HfApi
) -> None:
    head = push(tiny).reference.commit
    note(api, repo_id, 1)
    hub.clear()
    endless(hub, repo_id, [], hub.url.replace("127.0.0.1", "localhost"))
    with pytest.raises(HubError, match="goes on at http://localhost"):
        list(commits_since(api, repo_id, "main", head))
    assert [each.host.partition(":")[0] for each in hub.log()] == ["127.0.0.1"]


def test_commits_on_several_pages_are_found_and_no_more_pages_are_asked_for(
    push: Push, tiny: EditArtifact, other: EditArtifact, hub: LoopbackHub, repo_id: str, api: HfApi
) -> None:
    for number in range(12):
        push(tiny) if number == 11 else push(tiny, subfolder=f"old/{number}")
    head = api.model_info(repo_id).sha
    assert head is not None
    made = [note(api, repo_id, number) for number in range(11)]
    hub.clear()
    found = list(commits_since(api, repo_id, "main", head))
    assert [each.id for each in found] == made[::-1]
    assert (found[0].title, found[0].authors) == ("note 10", ("alice",))
    assert pages(hub) == 2  # of three
    info = api.list_repo_commits(repo_id)
    assert [(each.commit_id, each.title, tuple(each.authors)) for each in info[:11]] == [
        (each.id, each.title, each.authors) for each in found
    ]
    everything = [each.id for each in commits_since(api, repo_id, "main", "f" * 40)]
    assert everything == [each.commit_id for each in info]


def test_a_branch_may_have_a_slash_in_its_name(hub: LoopbackHub, repo_id: str, api: HfApi) -> None:
    api.create_repo(repo_id)
    api.create_branch(repo_id, branch="a/b")
    head = str(api.model_info(repo_id).sha)
    made = note(api, repo_id, 0, "a/b")
    assert [each.id for each in commits_since(api, repo_id, "a/b", head)] == [made]
