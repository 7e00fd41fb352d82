"""Whatever breaks: an error of ours or success, history and files whole, the same call works after.

The faults are ordered from the loopback Hub; nothing of the client or of ours is replaced.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hub_client import LoopbackHub
from huggingface_hub import HfApi

from salve_plugin.errors import ArtifactError, HubError, SalveError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.hub.push import Pushed
from salve_plugin.store.hub.reconcile import landed
from salve_plugin.store.hub.staged import Staged

Push = Callable[..., Pushed]
Pull = Callable[..., EditArtifact]

COMMIT = r"/commit/main$"


def git(hub: LoopbackHub, repo_id: str, *arguments: str) -> str:
    """Ask git itself about a repository of the Hub."""
    folder = hub.root / "models" / f"{repo_id}.git"
    command = ["git", "-c", "safe.directory=*", "--git-dir", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def commits(hub: LoopbackHub, repo_id: str, revision: str = "main") -> list[str]:
    return git(hub, repo_id, "log", "--format=%H", revision).split()


def is_whole(hub: LoopbackHub, repo_id: str) -> bool:
    """Tell whether git finds nothing wrong, and every commit after the first holds an artifact."""
    git(hub, repo_id, "fsck", "--strict", "--full")
    for commit in commits(hub, repo_id)[:-1]:
        EditArtifact.verify(repo_id, endpoint=hub.url, revision=commit)
    return True


# --- the server dies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "arg", "when", "made"),
    [
        ("/preupload/", 0, "before", False),
        (COMMIT, 0, "before", False),
        (COMMIT, 300, "before", False),
        (COMMIT, 0, "after", True),
        ("/paths-info/", 0, "after", False),
    ],
    ids=["before the upload", "before the commit", "in its body", "after it", "at the first look"],
)
def test_a_killed_hub_has_the_commit_or_not_and_the_same_call_works_after(
    hub_process: LoopbackHub,
    tiny: EditArtifact,
    repo_id: str,
    path: str,
    arg: float,
    when: str,
    made: bool,
) -> None:
    hub, api = hub_process, HfApi(endpoint=hub_process.url, token="hf_alice")
    api.create_repo(repo_id)
    hub.fault("kill", path, arg=arg, when=when)  # type: ignore[arg-type] # one of its words
    with pytest.raises(HubError) as caught:
        tiny.push_to_hub(repo_id, token="hf_alice", endpoint=hub.url)
    assert caught.value.reason in ("unreachable", "transfer")
    assert ("could not be asked whether" in str(caught.value)) == (path != "/paths-info/")
    hub.wait()
    hub.restart()
    assert len(commits(hub, repo_id)) == 1 + made
    again = tiny.push_to_hub(repo_id, token="hf_alice", endpoint=hub.url)
    assert again.created == (not made)
    assert commits(hub, repo_id)[0] == again.reference.commit
    assert len(commits(hub, repo_id)) == 2
    assert is_whole(hub, repo_id)


def test_a_hub_that_dies_while_content_is_uploaded_makes_no_commit(
    hub_process: LoopbackHub, tiny: EditArtifact, repo_id: str
) -> None:
    hub = hub_process
    HfApi(endpoint=hub.url, token="hf_alice").create_repo(repo_id)
    hub.fault("kill", "/v1/" if hub.xet else "/_s3/", method="POST|PUT")
    with pytest.raises(HubError):
        tiny.push_to_hub(repo_id, token="hf_alice", endpoint=hub.url)
    hub.wait()
    hub.restart()
    assert len(commits(hub, repo_id)) == 1
    assert tiny.push_to_hub(repo_id, token="hf_alice", endpoint=hub.url).created
    assert is_whole(hub, repo_id)


# --- answers are lost ----------------------------------------------------------------------------


def test_a_commit_whose_answer_is_lost_is_found_and_not_made_twice(
    push: Push, tiny: EditArtifact, hub: LoopbackHub, repo_id: str
) -> None:
    hub.fault("lost", COMMIT)
    pushed = push(tiny)
    assert pushed.created
    assert commits(hub, repo_id)[0] == pushed.reference.commit
    assert len(commits(hub, repo_id)) == 2
    assert is_whole(hub, repo_id)


def test_a_lost_answer_is_no_conflict_even_if_somebody_commits_right_after(
    push: Push,
    tiny: EditArtifact,
    other: EditArtifact,
    hub: LoopbackHub,
    repo_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer to ours is lost; before we ask what happened, another commit is on top."""
    hub.fault("lost", COMMIT)
    theirs: list[Pushed] = []

    def landed_later(client: HfApi, name: str, branch: str, staged: Staged, head: str) -> Any:
        if not theirs:
            theirs.append(push(other, subfolder="theirs"))
        return landed(client, name, branch, staged, head)

    monkeypatch.setattr("salve_plugin.store.hub.push.landed", landed_later)
    ours = push(tiny).reference
    assert commits(hub, repo_id)[:2] == [theirs[0].reference.commit, ours.commit]
    assert EditArtifact.verify(repo_id, endpoint=hub.url, revision=ours.commit) == tiny.digest


def test_a_pull_request_whose_answer_is_lost_is_found_and_not_made_twice(
    push: Push, tiny: EditArtifact, other: EditArtifact, hub: LoopbackHub, repo_id: str
) -> None:
    push(tiny)
    hub.fault("lost", COMMIT)
    pushed = push(other, create_pr=True)
    assert pushed.pull_request == "refs/pr/1"
    assert commits(hub, repo_id, "refs/pr/1")[0] == pushed.reference.commit
    assert git(hub, repo_id, "for-each-ref", "refs/pr").count("\n") == 1


def test_a_tag_and_a_repository_whose_answers_are_lost_are_found(
    push: Push, tiny: EditArtifact, hub: LoopbackHub, repo_id: str
) -> None:
    hub.fault("lost", "/api/repos/create")
    hub.fault("lost", "/tag/")
    pushed = push(tiny, tag="v1")
    assert git(hub, repo_id, "rev-parse", "v1^{commit}").strip() == pushed.reference.commit
    assert len(commits(hub, repo_id)) == 2


def test_a_tag_that_cannot_be_made_leaves_the_commit_and_the_same_call_tags_it(
    push: Push, tiny: EditArtifact, hub: LoopbackHub, repo_id: str
) -> None:
    hub.fault("status", "/tag/", method="POST", arg=503, times=99)
    with pytest.raises(HubError, match=r"is made, but not tagged: .* same call again to tag it"):
        push(tiny, tag="v1")
    hub.clear()
    again = push(tiny, tag="v1")
    assert not again.created
    assert git(hub, repo_id, "rev-parse", "v1^{commit}").strip() == again.reference.commit


# --- busy and broken answers, at every request ---------------------------------------------------


def kinds_of_requests(hub: LoopbackHub, repo_id: str) -> list[tuple[str, str]]:
    """Return each method and path (as a pattern) that the log holds, once."""
    patterns: dict[tuple[str, str], None] = {}
    for each in hub.log():
        path = re.escape(each.path.partition("?")[0]).replace(re.escape(repo_id), "[^/]+/[^/]+")
        path = re.sub(r"[0-9a-f]{64}|[0-9a-f]{40}", r"[0-9a-f]+", path)
        patterns[(each.method, f"^{path}$")] = None
    return list(patterns)


@pytest.fixture
def push_requests(hub: LoopbackHub, tiny: EditArtifact, repo_id: str) -> list[tuple[str, str]]:
    """Everything that a push with a new repository and a tag asks for, learnt from a real one."""
    tiny.push_to_hub(repo_id + "-first", token="hf_alice", endpoint=hub.url, tag="v1")
    found = kinds_of_requests(hub, repo_id + "-first")
    hub.clear()
    return found


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_at_any_request_of_a_push_is_waited_for(
    push_requests: list[tuple[str, str]],
    tiny: EditArtifact,
    hub: LoopbackHub,
    repo_id: str,
    status: int,
    waits: list[float],
) -> None:
    assert len(push_requests) >= 8
    for number, (method, path) in enumerate(push_requests):
        name = f"{repo_id}-{number}"
        headers = {"Retry-After": "7"} if status == 429 else {}
        hub.fault("status", path, method=method, arg=status, headers=headers)
        first = outcome(tiny, hub, name)
        hub.clear()
        second = outcome(tiny, hub, name)
        assert isinstance(second, Pushed), (method, path, second)
        assert isinstance(first, Pushed), (method, path, first)
        assert len(commits(hub, name)) == 2
        assert is_whole(hub, name)
    assert set(waits) <= ({7.0} if status == 429 else {0.5})


@pytest.mark.parametrize("fault", ["status", "drop", "json"])
def test_a_hub_that_stays_broken_at_any_request_of_a_push_is_an_error_of_ours(
    push_requests: list[tuple[str, str]],
    tiny: EditArtifact,
    hub: LoopbackHub,
    repo_id: str,
    fault: str,
) -> None:
    for number, (method, path) in enumerate(push_requests):
        name = f"{repo_id}-{number}"
        hub.fault(fault, path, method=method, arg=500, times=999, body='{"a": [')  # type: ignore[arg-type] # a kind
        outcome(tiny, hub, name)
        hub.clear()
        second = outcome(tiny, hub, name)
        assert isinstance(second, Pushed), (method, path, second)
        assert len(commits(hub, name)) == 2
        assert is_whole(hub, name)


def outcome(artifact: EditArtifact, hub: LoopbackHub, repo_id: str) -> Pushed | SalveError:
    """Push; return what came of it, if that is success or an error of ours."""
    try:
        return artifact.push_to_hub(repo_id, token="hf_alice", endpoint=hub.url, tag="v1")
    except SalveError as error:
        return error


@pytest.mark.parametrize("fault", ["status", "drop", "lost", "json"])
def test_a_pull_from_a_broken_hub_is_an_error_of_ours_and_works_after(
    push: Push,
    pull: Pull,
    tiny: EditArtifact,
    hub: LoopbackHub,
    repo_id: str,
    tmp_path: Path,
    fault: str,
) -> None:
    push(tiny)
    hub.clear()
    pull(cache_dir=tmp_path / "first")
    requests = kinds_of_requests(hub, repo_id)
    assert len(requests) >= 6
    for number, (method, path) in enumerate(requests):
        hub.fault(fault, path, method=method, arg=503, times=999, body="[")  # type: ignore[arg-type] # a kind
        with suppress(SalveError):
            assert pull(cache_dir=tmp_path / f"cache{number}").digest == tiny.digest
        hub.clear()
        assert pull(cache_dir=tmp_path / f"cache{number}").digest == tiny.digest


# --- content is damaged on its way ---------------------------------------------------------------


CONTENT = {"xet": "/v1/xorb|/resolve", "plain": "/_cdn/|/resolve"}


@pytest.mark.parametrize("fault", ["truncate", "short", "flip"])
@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("times", [1, 999])
def test_content_that_is_damaged_on_its_way_is_never_accepted(
    push: Push, pull: Pull, tiny: EditArtifact, hub: LoopbackHub, fault: str, after: int, times: int
) -> None:
    """Manifest and picture are small files, the tensors go through LFS or Xet."""
    push(tiny)
    path = CONTENT["xet" if hub.xet else "plain"]
    hub.fault(fault, path, method="GET", arg=100, after=after, times=times)  # type: ignore[arg-type] # a kind
    try:
        assert pull().digest == tiny.digest
    except (ArtifactError, HubError):
        assert times == 999 or fault != "flip"  # one flipped byte is mended by asking again
    hub.clear()
    assert pull().digest == tiny.digest


def test_a_flipped_byte_in_every_answer_is_an_error_that_names_the_file(
    push: Push, pull: Pull, tiny: EditArtifact, hub: LoopbackHub
) -> None:
    push(tiny)
    hub.fault("flip", r"/resolve.*/edit_config\.json$", method="GET", arg=60, times=999)
    with pytest.raises(ArtifactError, match=r"edit_config\.json (was changed|is not valid)"):
        pull()


def test_content_that_is_damaged_while_pushing_is_never_committed(
    push: Push, tiny: EditArtifact, hub: LoopbackHub, repo_id: str
) -> None:
    """The Hub says that it already has a file, and has another one."""
    hub.fault("json", "/preupload/", times=1, body=(
        '{"files": [{"path": "edit.safetensors", "uploadMode": "regular", "shouldIgnore": true},'
        '{"path": "edit_config.json", "uploadMode": "regular", "shouldIgnore": false},'
        '{"path": "README.md", "uploadMode": "regular", "shouldIgnore": false},'
        '{"path": "picture_heat_map.png", "uploadMode": "regular", "shouldIgnore": false}]}'
    ))  # fmt: skip
    with pytest.raises(HubError, match="does not hold what was pushed"):
        push(tiny)
    again = push(tiny)
    assert again.created
    assert EditArtifact.verify(repo_id, endpoint=hub.url) == tiny.digest


# --- the disk is full ----------------------------------------------------------------------------


PULL_WITH_A_FULL_DISK = """
import resource, signal, sys
from salve_plugin.errors import SalveError
from salve_plugin.share.artifact import EditArtifact
url, repo_id, cache = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing beyond the limit is an OSError
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in (100, 1000, hard):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        print(EditArtifact.from_pretrained(repo_id, endpoint=url, cache_dir=cache).digest)
    except SalveError as error:
        print(type(error).__name__)
"""


def test_a_full_disk_is_reported_and_the_same_call_works_after(
    push: Push, tiny: EditArtifact, hub: LoopbackHub, repo_id: str, hf_home: Path
) -> None:
    push(tiny)
    command = [sys.executable, "-c", PULL_WITH_A_FULL_DISK, hub.url, repo_id, str(hf_home / "c")]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": str(int(not hub.xet))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    *refused, digest = done.stdout.split()
    assert digest == tiny.digest
    assert set(refused) <= {"WriteError", "HubError"}
    assert len(refused) == 2
