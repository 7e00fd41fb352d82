"""`salve verify` and `inspect` tell of one commit and of one reading, whatever moves meanwhile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from command import run
from hub_client import LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi
from small_artifacts import contents, small_artifact, small_bundle
from small_dictionaries import tiny

from salve_plugin.cli.shared import find
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.hub.push import Pushed

Capture = pytest.CaptureFixture[str]
SHARED: dict[str, Callable[[], EditArtifact | EditBundle | Dictionary]] = {
    "edit": small_artifact,
    "bundle": small_bundle,
    "dictionary": tiny,
}


@pytest.fixture(autouse=True)
def waits(client_waits: list[float]) -> list[float]:
    """The Hub client does not wait before it repeats a request."""
    return client_waits


@pytest.fixture
def api(default_hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=default_hub.url, token="hf_alice")


def pushed(shared: EditArtifact | EditBundle | Dictionary, api: HfApi, repo_id: str) -> Pushed:
    return shared.push_to_hub(repo_id, token="hf_alice", endpoint=api.endpoint)


def resolutions(hub: LoopbackHub) -> int:
    """Count the requests that asked what the branch is."""
    return sum("/resolve/main/" in each.path for each in hub.log())


@contextmanager
def moving(hub: LoopbackHub, api: HfApi, repo_id: str, name: str) -> Iterator[None]:
    """Commit another card as soon as the branch was resolved; `name` waits for that commit."""
    hub.clear()
    hub.fault("delay", f"/{name}$", arg=2)

    def move() -> None:
        while not resolutions(hub):
            time.sleep(0.01)
        card = CommitOperationAdd("README.md", b"---\n{}\n---\nanother\n")
        api.create_commit(repo_id, [card], commit_message="another card")

    thread = Thread(target=move)
    thread.start()
    yield
    thread.join()
    requests = [each.path for each in hub.log()]
    (moved,) = [i for i, path in enumerate(requests) if path.endswith("/commit/main")]
    read = [i for i, path in enumerate(requests) if path.endswith(f"/{name}")]
    assert moved < read[0], "the branch moved too late"


@pytest.mark.parametrize("hub", ["plain"], indirect=True)
@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_branch_that_moves_meanwhile_is_not_followed(
    command: str, default_hub: LoopbackHub, api: HfApi, repo_id: str, capsys: Capture
) -> None:
    artifact = small_artifact()
    commit = pushed(artifact, api, repo_id).reference.commit
    with moving(default_hub, api, repo_id, "edit.safetensors"):
        status, told = run(capsys, command, repo_id)
    assert (status, told["digest"], told["card"]) == (0, artifact.digest, "as written")
    assert commit == (told["commit"] if command == "verify" else told["origin"]["commit"])
    assert resolutions(default_hub) == 1
    assert run(capsys, command, repo_id)[1]["card"] == "edited"


@pytest.mark.parametrize("hub", ["plain"], indirect=True)
@pytest.mark.parametrize("kind", SHARED)
def test_a_branch_is_resolved_once_and_each_file_downloaded_once(
    kind: str, default_hub: LoopbackHub, api: HfApi, repo_id: str, capsys: Capture
) -> None:
    pushed(SHARED[kind](), api, repo_id)
    for command in ("verify", "inspect"):
        default_hub.clear()
        status, told = run(capsys, command, repo_id, "--force-download")
        assert (status, told["kind"]) == (0, kind)
        assert resolutions(default_hub) == 1
        sent = [each.path for each in default_hub.log() if each.method == "GET"]
        assert len(sent) == len(set(sent))


@pytest.mark.parametrize("hub", ["plain"], indirect=True)
@pytest.mark.parametrize("kind", SHARED)
def test_what_is_in_the_cache_is_found_without_a_network_whatever_it_is(
    kind: str, default_hub: LoopbackHub, api: HfApi, repo_id: str, capsys: Capture
) -> None:
    commit = pushed(SHARED[kind](), api, repo_id).reference.commit
    failed = run(capsys, "verify", repo_id, "--offline")
    assert (failed[0], failed[1]["error"]) == (1, "HubError")
    told = run(capsys, "verify", repo_id)[1]
    default_hub.clear()
    assert run(capsys, "verify", repo_id, "--offline") == (0, told)
    assert run(capsys, "verify", repo_id, "--offline", "--revision", commit) == (0, told)
    assert default_hub.log() == []


@pytest.mark.parametrize("hub", ["plain"], indirect=True)
def test_a_bundle_is_found_where_refusals_name_no_commit_and_where_the_hub_is_down(
    default_hub: LoopbackHub, api: HfApi, repo_id: str, capsys: Capture
) -> None:
    bundle = small_bundle()
    pushed(bundle, api, repo_id)
    absent = "/resolve/main/edit_config.json"
    default_hub.fault("status", absent, arg=404, code="EntryNotFound")
    assert run(capsys, "verify", repo_id)[1]["digest"] == bundle.digest
    default_hub.clear()
    default_hub.fault("status", "/resolve/main/", arg=503, times=1000)
    with pytest.warns(UserWarning, match="The cache is used instead"):
        status, told = run(capsys, "verify", repo_id)
    assert (status, told["digest"]) == (0, bundle.digest)


def test_what_is_told_is_of_the_bytes_that_were_read(tmp_path: Path) -> None:
    folder = small_artifact().save_pretrained(tmp_path / "edit")
    files = contents(folder)
    found = find(folder)
    for name in files:
        (folder / name).unlink()
    assert found.description["bytes"] == sum(map(len, files.values())) - len(files["README.md"])
    assert (found.digest, found.description["card"]) == (found.description["digest"], "as written")
