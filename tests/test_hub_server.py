"""The Hub on loopback, asked by the real client and by git."""

import hashlib
import random
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import httpx2
import pytest
from hub_client import LoopbackHub
from hub_faults import Kind
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


LARGE = noise(50_000)
FILES = {"a.json": b"{}", "deep/er/b ü.txt": b"text", "c.safetensors": LARGE}
MANY_PARTS = {"d.bin": noise(6_000_000, 1)}
ONLY_PLAIN = pytest.mark.parametrize("hub", ["plain"], indirect=True)
ONLY_XET = pytest.mark.parametrize("hub", ["xet"], indirect=True)
STORES = "/_cdn/|/v1/xorb/"
"""Paths of downloads of large files, without and with Xet."""


def client(hub: LoopbackHub, token: str | bool = "hf_alice") -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def push(
    api: HfApi,
    repo_id: str,
    files: dict[str, bytes],
    parent: str | None = None,
    branch: str = "main",
) -> str:
    """Upload files in one commit and return its id."""
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    done = api.create_commit(
        repo_id, operations, commit_message="push", parent_commit=parent, revision=branch
    )
    return done.oid


def created(api: HfApi, repo_id: str, files: dict[str, bytes] = FILES) -> str:
    """Create a repository with files and return its newest commit."""
    api.create_repo(repo_id)
    return push(api, repo_id, files)


def pull(api: HfApi, repo_id: str, name: str, revision: str = "main", again: bool = False) -> bytes:
    path = api.hf_hub_download(repo_id, name, revision=revision, force_download=again)
    return Path(path).read_bytes()


def strangers(status: int) -> list[tuple[str | bool, int]]:
    """Return those without rights, and how they are refused: the anonymous are to sign in."""
    return [("hf_bob", status), (False, 401)]


def git(hub: LoopbackHub, repo_id: str, *arguments: str) -> list[str]:
    """Ask git about a repository of the server."""
    command = ["git", f"--git-dir={hub.root}/models/{repo_id}.git", "-c", "core.quotePath=off"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_files_come_back_as_they_were_sent(hub: LoopbackHub, repo_id: str, tmp_path: Path) -> None:
    api, files = client(hub), FILES | MANY_PARTS
    created(api, repo_id, files)
    parts = [each for each in hub.log() if each.path.startswith("/_s3/") and each.method == "PUT"]
    assert len(parts) == (0 if hub.xet else 1 + 3)
    assert all(pull(api, repo_id, name) == data for name, data in files.items())
    folder = Path(api.snapshot_download(repo_id, local_dir=tmp_path / "copy"))
    assert all((folder / name).read_bytes() == data for name, data in files.items())


def test_ranges_are_served(hub: LoopbackHub, repo_id: str) -> None:
    created(client(hub), repo_id)

    def ask(name: str, asked: str) -> tuple[int, bytes]:
        url = f"{hub.url}/{repo_id}/resolve/main/{name}"
        request = urllib.request.Request(url, headers={"Range": asked})
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()

    assert ask("c.safetensors", "bytes=10-19") == (206, LARGE[10:20])
    assert ask("c.safetensors", "bytes=49990-") == (206, LARGE[-10:])
    assert ask("a.json", "bytes=1-") == (206, b"}")
    hub.fault("norange", "/_cdn/")
    assert ask("c.safetensors", "bytes=10-19") == (200, LARGE)
    with pytest.raises(HTTPError, match="416"):
        ask("c.safetensors", "bytes=50000-")


def test_the_token_does_not_leave_the_hub(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    created(api, repo_id)
    pull(api, repo_id, "c.safetensors")
    hub_asked = [each for each in hub.log() if each.path.startswith(("/api/", f"/{repo_id}"))]
    elsewhere = [each for each in hub.log() if each not in hub_asked]
    assert {each.authorization for each in hub_asked} == {"Bearer hf_alice"}
    assert elsewhere
    assert not any("hf_" in each.authorization for each in elsewhere)
    downloads = [each for each in elsewhere if each.path.startswith("/_cdn/")]
    assert {each.host.split(":")[0] for each in downloads} == (set() if hub.xet else {"localhost"})
    with pytest.raises(HTTPError, match="400"):  # as S3 would, if it were sent
        urllib.request.urlopen(
            urllib.request.Request(
                f"{hub.url}/_cdn/{'0' * 64}", headers={"Authorization": "Bearer hf_alice"}
            )
        )


@ONLY_XET
def test_a_client_without_xet_reads_what_came_with_it(
    hub: LoopbackHub, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = client(hub)
    created(api, repo_id, MANY_PARTS)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.clear()
    assert pull(api, repo_id, "d.bin") == MANY_PARTS["d.bin"]
    assert [each.method for each in hub.log()] == ["HEAD", "GET", "GET"]
    api.create_repo(f"{repo_id}-2")
    push(api, f"{repo_id}-2", MANY_PARTS)
    assert not any(each.method == "PUT" for each in hub.log())  # it is there


def test_branches_and_tags(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    first = created(api, repo_id)
    api.create_branch(repo_id, branch="try/this", revision=first)
    api.create_tag(repo_id, tag="v1", tag_message="with a message", revision=first)
    second = push(api, repo_id, {"a.json": b"[]"})
    on_branch = push(api, repo_id, {"a.json": b"1"}, branch="try/this")
    for name, content in [
        (first, b"{}"),
        ("v1", b"{}"),
        ("main", b"[]"),
        (second[:8], b"[]"),
        ("try/this", b"1"),
    ]:
        assert pull(api, repo_id, "a.json", name) == content
    refs = api.list_repo_refs(repo_id)
    assert {ref.name: ref.target_commit for ref in [*refs.branches, *refs.tags]} == {
        "main": second,
        "try/this": on_branch,
        "v1": first,
    }
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(repo_id, branch="try/this")
    api.create_branch(repo_id, branch="try/this", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(repo_id, tag="v1")
    api.create_tag(repo_id, tag="v1", exist_ok=True)
    api.delete_tag(repo_id, tag="v1")
    api.delete_branch(repo_id, branch="try/this")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo_id, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo_id, revision="try/this")
    with pytest.raises(HfHubHTTPError, match="bad name"):
        api.create_tag(repo_id, tag="a b")


def test_a_commit_needs_its_parent(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    first = created(api, repo_id)
    second = push(api, repo_id, {"a.json": b"[]"}, parent=first[:10])
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        push(api, repo_id, {"a.json": b"[1]"}, parent=first)
    assert caught.value.response.status_code == 412
    # It is the client that makes no commit of what is there, and it does not look at the parent.
    assert push(api, repo_id, {"a.json": b"[]", "c.safetensors": LARGE}, parent=first) == second
    assert [each.commit_id for each in api.list_repo_commits(repo_id)][:2] == [second, first]


def test_of_commits_on_one_parent_one_is_made(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    first = created(api, repo_id)

    def attempt(number: int) -> int:
        try:
            push(api, repo_id, {f"{number}.json": b"{}"}, parent=first)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(attempt, range(6))) == [200] + [412] * 5
        without_parent = pool.map(lambda n: push(api, repo_id, {f"x{n}.json": b""}), range(6))
    names = {entry.path for entry in api.list_repo_tree(repo_id)}
    assert len(set(without_parent)) == 6
    assert {f"x{number}.json" for number in range(6)} <= names


def test_operations_are_made_together_or_not(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    head = created(api, repo_id)
    add = CommitOperationAdd("new.json", b"1")
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.create_commit(repo_id, [add, CommitOperationDelete("no.json")], commit_message="m")
    assert api.model_info(repo_id).sha == head
    assert api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests == []
    api.create_commit(
        repo_id,
        [CommitOperationAdd("new.json", b"1"), CommitOperationDelete("deep/")],
        commit_message="title",
        commit_description="and more\n\nof it",
    )
    assert api.list_repo_files(repo_id) == [".gitattributes", "a.json", "c.safetensors", "new.json"]
    newest = api.list_repo_commits(repo_id)[0]
    assert (newest.title, newest.message) == ("title", "and more\n\nof it")
    assert newest.authors == ["alice"]


def test_binary_files_are_large_ones(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    created(api, repo_id, {"picture.png": b"\x89PNG\0", "x.bin": b"1"})
    picture = api.get_paths_info(repo_id, "picture.png")[0]
    assert isinstance(picture, RepoFile)
    assert picture.lfs is not None
    lines = pull(api, repo_id, ".gitattributes").decode().splitlines()
    assert lines[-1] == "picture.png filter=lfs diff=lfs merge=lfs -text"
    assert not any(line.startswith("x.bin") for line in lines)


def test_anyone_may_open_a_pull_request(hub: LoopbackHub, repo_id: str) -> None:
    alice, bob = client(hub), client(hub, "hf_bob")
    head = created(alice, repo_id)
    alice.create_discussion(repo_id, title="a question")
    proposed = bob.create_commit(
        repo_id,
        [CommitOperationAdd("a.json", b"1"), CommitOperationAdd("e.bin", LARGE[:100])],
        commit_message="a proposal",
        create_pr=True,
        parent_commit=head,
    )
    assert (proposed.pr_num, proposed.pr_revision) == (2, "refs/pr/2")
    assert alice.model_info(repo_id).sha == head
    assert pull(alice, repo_id, "e.bin", "refs/pr/2") == LARGE[:100]
    more = push(bob, repo_id, {"a.json": b"2"}, branch="refs/pr/2", parent=proposed.oid)
    refs = alice.list_repo_refs(repo_id, include_pull_requests=True).pull_requests
    assert [(ref.name, ref.target_commit) for ref in refs or []] == [("2", more)]
    opened = bob.create_pull_request(repo_id, title="another")
    assert opened.git_reference == "refs/pr/3"
    assert [(each.num, each.title) for each in alice.get_repo_discussions(repo_id)] == [
        (1, "a question"),
        (2, "a proposal"),
        (3, "another"),
    ]


def test_who_may_do_what(hub: LoopbackHub, repo_id: str) -> None:
    alice, name = client(hub), repo_id.split("/")[1]
    created(alice, repo_id)
    assert alice.create_repo(name, exist_ok=True).repo_id == repo_id
    with pytest.raises(HfHubHTTPError, match="already created"):
        alice.create_repo(repo_id)
    for token, status in [*strangers(403), ("hf_alice-read", 403), ("hf_no", 401)]:
        other = client(hub, token)
        for refused in (
            lambda other=other: push(other, repo_id, {"a.json": b"1"}),
            lambda other=other: other.create_tag(repo_id, tag="v1"),
            lambda other=other: other.create_repo(f"{repo_id}-2"),
            lambda other=other: other.delete_repo(repo_id),
        ):
            with pytest.raises(HfHubHTTPError) as caught:
                refused()
            assert caught.value.response.status_code == status
    assert client(hub, "hf_alice-read").whoami()["name"] == "alice"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client(hub, "hf_no").whoami()


def test_private_and_missing_repositories_look_alike(
    hub: LoopbackHub, repo_id: str, tmp_path: Path
) -> None:
    alice = client(hub)
    alice.create_repo(repo_id, private=True)
    push(alice, repo_id, FILES)
    assert alice.model_info(repo_id).private
    assert pull(client(hub, "hf_alice-read"), repo_id, "a.json") == b"{}"
    told = set()
    for token, status in strangers(404):
        for name in (repo_id, "alice/nothing"):
            with pytest.raises(RepositoryNotFoundError) as caught:
                client(hub, token).model_info(name)
            assert caught.value.response.status_code == status
            told.add((status, caught.value.server_message))
            with pytest.raises(RepositoryNotFoundError):
                client(hub, token).hf_hub_download(name, "c.safetensors", cache_dir=tmp_path)
    assert len(told) == 2
    alice.update_repo_settings(repo_id, private=False)
    assert pull(client(hub, False), repo_id, "c.safetensors") == LARGE


def test_of_a_gated_repository_others_see_only_names(hub: LoopbackHub, repo_id: str) -> None:
    alice = client(hub)
    created(alice, repo_id)
    alice.update_repo_settings(repo_id, gated="manual")
    assert pull(alice, repo_id, "c.safetensors") == LARGE
    for number, (token, status) in enumerate(strangers(403)):
        other = client(hub, token)
        assert other.model_info(repo_id).gated == "manual"
        assert "a.json" in other.list_repo_files(repo_id)
        with pytest.raises(GatedRepoError) as caught:
            other.snapshot_download(repo_id, cache_dir=f"{constants.HF_HUB_CACHE}{number}")
        assert caught.value.response.status_code == status


CARD = b"---\ntags: [salve, test]\nlibrary_name: salve_plugin\nlicense: mit\n---\n# Card\n"


def test_what_the_api_tells_of_a_repository(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    head = created(api, repo_id, {**FILES, "README.md": CARD})
    info = api.model_info(repo_id, files_metadata=True)
    assert (info.sha, info.author, info.tags) == (head, "alice", ["salve", "test"])
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert {file.rfilename: file.size for file in info.siblings or []}["c.safetensors"] == 50_000
    assert api.model_info(repo_id, expand=["sha", "tags"]).siblings is None
    assert repo_id in {each.id for each in api.list_models(author="alice", filter="salve")}
    found = api.get_paths_info(repo_id, ["deep", "c.safetensors", "no"], expand=True)
    assert [each.path for each in found] == ["deep", "c.safetensors"]
    assert found[1].last_commit is not None
    assert found[1].last_commit.oid == head
    with pytest.raises(ValueError, match="Invalid metadata"):
        push(api, repo_id, {"README.md": b"---\n[\n---\n"})
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        push(api, repo_id, {"README.md": b"no metadata"})
    with pytest.raises(RevisionNotFoundError):
        push(api, repo_id, {"a.json": b""}, branch="no-such-branch")
    with pytest.raises(EntryNotFoundError):
        pull(api, repo_id, "no.json")


def test_git_agrees_with_the_api(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    created(api, repo_id)
    for number in range(22):  # three pages
        push(api, repo_id, {"counter.txt": str(number).encode()})
    push(api, repo_id, {f"many/{number}.txt": b"" for number in range(210)})  # two pages
    api.create_tag(repo_id, tag="v1", tag_message="annotated")
    assert git(hub, repo_id, "fsck", "--strict") == []
    log = git(hub, repo_id, "log", "--format=%H %s", "main")
    commits = api.list_repo_commits(repo_id)
    assert [f"{each.commit_id} {each.title}" for each in commits] == log
    assert len(log) == 1 + 1 + 22 + 1
    tree = api.list_repo_tree(repo_id, recursive=True)
    told = {each.path: each.blob_id for each in tree if hasattr(each, "blob_id")}
    listed = [line.split("\t") for line in git(hub, repo_id, "ls-tree", "-r", "main")]
    assert told == {path: properties.split()[2] for properties, path in listed}
    assert {path for path, size in FILES.items()} <= set(told)
    pointer = git(hub, repo_id, "show", "main:c.safetensors")
    assert pointer[1:] == [f"oid sha256:{hashlib.sha256(LARGE).hexdigest()}", "size 50000"]


def test_repositories_are_moved_and_deleted(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    head = created(api, repo_id)
    api.move_repo(repo_id, f"{repo_id}-moved")
    assert api.model_info(f"{repo_id}-moved").sha == head
    api.delete_repo(f"{repo_id}-moved")
    assert not api.repo_exists(f"{repo_id}-moved")
    api.create_repo(f"{repo_id}-moved")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(f"{repo_id}-moved", revision=head)


@pytest.mark.parametrize("do", ["truncate", "short", "drop", "lost", "flip"])
def test_what_the_client_makes_of_broken_downloads(
    hub: LoopbackHub, repo_id: str, client_waits: list[float], do: Kind
) -> None:
    api = client(hub)
    created(api, repo_id)
    hub.fault(do, STORES, method="GET", arg=100)
    if do == "flip":  # nobody compares digests: neither the client nor, of chunks, hf_xet
        assert pull(api, repo_id, "c.safetensors") != LARGE
    elif do == "short" and not hub.xet:
        with pytest.raises(OSError, match="Consistency check failed"):
            pull(api, repo_id, "c.safetensors")
    else:
        assert pull(api, repo_id, "c.safetensors") == LARGE
    assert pull(api, repo_id, "c.safetensors", again=True) == LARGE
    hub.fault(do, STORES, method="GET", arg=100, times=99)
    errors = (OSError, RuntimeError, httpx2.RemoteProtocolError)
    if do == "flip":
        assert pull(api, repo_id, "c.safetensors", again=True) != LARGE
    else:
        with pytest.raises(errors):
            pull(api, repo_id, "c.safetensors", again=True)
        hub.clear()
        assert pull(api, repo_id, "c.safetensors") == LARGE  # the old file is still in the cache


def test_what_the_client_makes_of_refusals(
    hub: LoopbackHub, repo_id: str, client_waits: list[float]
) -> None:
    api = client(hub)
    created(api, repo_id)
    hub.fault("status", "/preupload/", arg=429, headers={"Retry-After": "7"})
    push(api, repo_id, {"a.json": b"1"})
    assert client_waits == [8]
    hub.fault("status", "/commit/", arg=500, code="Some")
    with pytest.raises(HfHubHTTPError, match="Root=1-") as caught:
        push(api, repo_id, {"a.json": b"2"})
    assert caught.value.response.headers["X-Error-Code"] == "Some"
    hub.fault("status", "/commit/", arg=500, when="after")
    with pytest.raises(HfHubHTTPError, match="500"):
        push(api, repo_id, {"a.json": b"3"})
    assert pull(api, repo_id, "a.json") == b"3"
    hub.fault("json", "/preupload/", body="{}")
    with pytest.raises(ValueError, match="improperly formatted"):
        push(api, repo_id, {"a.json": b"4"})
    hub.fault("status", "/resolve/", method="HEAD", arg=503, times=99)
    with pytest.raises(LocalEntryNotFoundError):
        pull(api, repo_id, "c.safetensors")
    hub.clear()
    hub.fault("status", "/whoami", arg=401, after=1)
    api.whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami()
    api.whoami()
    assert [each.status for each in hub.log()] == [200, 401, 200]


def test_a_lost_answer_is_one_of_a_commit_that_was_made(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    head = created(api, repo_id)
    hub.fault("drop", "/commit/")
    with pytest.raises(httpx2.RemoteProtocolError):
        push(api, repo_id, {"a.json": b"1"})
    assert api.model_info(repo_id).sha == head
    hub.fault("lost", "/commit/")
    with pytest.raises(httpx2.RemoteProtocolError):
        push(api, repo_id, {"a.json": b"1"})
    assert api.list_repo_commits(repo_id)[1].commit_id == head
    assert [each.status for each in hub.log() if "/commit/" in each.path] == [200, 0, 0]


def test_half_a_request_does_nothing(hub: LoopbackHub, repo_id: str) -> None:
    api, line = client(hub), b'{"key": "header", "value": {"summary": "half"}}\n'
    head = created(api, repo_id)
    address = urlsplit(hub.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        told = "Host: loopback\r\nAuthorization: Bearer hf_alice\r\nContent-Length: 500\r\n\r\n"
        start = f"POST /api/models/{repo_id}/commit/main HTTP/1.1\r\n{told}"
        connection.sendall(start.encode() + line)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert api.model_info(repo_id).sha == head


def test_a_slow_answer_is_not_waited_for(hub: LoopbackHub, repo_id: str) -> None:
    api = client(hub)
    created(api, repo_id)
    for when in ("before", "after"):
        hub.fault("delay", f"/{repo_id}$", arg=0.3, when=when)
        with pytest.raises(httpx2.ReadTimeout):
            api.model_info(repo_id, timeout=0.1)


def at_preupload(hub: LoopbackHub) -> None:
    hub.fault("kill", "/preupload/")


def at_upload(hub: LoopbackHub) -> None:
    hub.fault("kill", "/_s3/|/v1/xorbs/", arg=10_000)


def before_commit(hub: LoopbackHub) -> None:
    hub.fault("kill", "/commit/", arg=100)


def after_commit(hub: LoopbackHub) -> None:
    hub.fault("kill", "/commit/", when="after")


@pytest.mark.parametrize("kill", [at_preupload, at_upload, before_commit, after_commit])
def test_a_killed_server_goes_on_where_it_was(
    hub_process: LoopbackHub,
    repo_id: str,
    client_waits: list[float],
    kill: Callable[[LoopbackHub], None],
) -> None:
    hub, api = hub_process, client(hub_process)
    head = created(api, repo_id)
    api.create_tag(repo_id, tag="v1")
    api.update_repo_settings(repo_id, private=True)
    kill(hub)
    new = {"a.json": b"new", "c.safetensors": noise(50_000, 2)}
    with pytest.raises((httpx2.HTTPError, RuntimeError, OSError)):
        push(api, repo_id, new, parent=head)
    assert hub.wait() == 9
    hub.restart()
    took_effect = kill is after_commit
    newest = [each.commit_id for each in api.list_repo_commits(repo_id)]
    assert newest[1 if took_effect else 0] == head
    assert pull(api, repo_id, "c.safetensors", "v1") == LARGE
    assert api.model_info(repo_id).private
    if not took_effect:
        push(api, repo_id, new, parent=head)
    assert pull(api, repo_id, "c.safetensors") == new["c.safetensors"]
    assert git(hub, repo_id, "fsck", "--strict") == []
    hub.kill()
    hub.restart()
    assert pull(api, repo_id, "a.json", again=True) == b"new"


def test_the_users_own_files_are_left_alone(
    hub: LoopbackHub, repo_id: str, hf_home: Path, tmp_path: Path
) -> None:
    created(client(hub), repo_id)
    pull(client(hub), repo_id, "c.safetensors")
    assert hf_home.is_relative_to(tmp_path)
    assert list(hf_home.glob("hub/models--*"))
    assert bool(list(hf_home.glob("xet/*"))) == hub.xet


def test_the_client_can_be_told_to_ask_it_by_default(
    default_hub: LoopbackHub, repo_id: str
) -> None:
    hub = default_hub
    created(client(hub), repo_id)
    assert HfApi().model_info(repo_id).id == repo_id
    assert Path(hf_hub_download(repo_id, "a.json")).read_bytes() == b"{}"
    # With another endpoint than the default, the client does not know what this address is.
    assert client(hub, "hf_bob").create_repo(repo_id, exist_ok=True).repo_id == repo_id
    program = "from huggingface_hub import constants as c; print(c.ENDPOINT, c.HF_HUB_DISABLE_XET)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hub.url, str(not hub.xet)]
