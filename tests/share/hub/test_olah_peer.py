"""An offline mirror that we did not write serves what we pushed, from a git clone of it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_client import LoopbackHub

from salve_plugin.errors import ArtifactError, HubError
from salve_plugin.share.artifact import EditArtifact

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

REPO = "alice/edit"


@pytest.fixture(scope="module")
def olah(peer_python: Callable[..., Path]) -> Path:
    """The command of the mirror."""
    return peer_python("olah", "olah==0.5.4").with_name("olah-cli")


@pytest.fixture
def clone(
    hf_home: Path,
    tmp_path: Path,
    tiny: EditArtifact,
    other: EditArtifact,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A git clone, with the large files, of a repository that two artifacts were pushed to."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub = LoopbackHub.start(tmp_path / "hub", "--no-xet")
    try:
        tiny.push_to_hub(REPO, token="hf_alice", endpoint=hub.url, tag="v1")
        other.push_to_hub(REPO, token="hf_alice", endpoint=hub.url, subfolder="other")
    finally:
        hub.kill()
    folder = tmp_path / "mirrors" / "models" / REPO
    bare = hub.root / "models" / f"{REPO}.git"
    subprocess.run(["git", "clone", "--quiet", str(bare), str(folder)], check=True)
    for blob in (hub.root / "lfs").iterdir():  # as `git lfs fetch` lays them
        place = folder / ".git" / "lfs" / "objects" / blob.name[:2] / blob.name[2:4] / blob.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(blob, place)
    return folder


@pytest.fixture
def mirror(olah: Path, clone: Path, tmp_path: Path) -> Iterator[str]:
    """The address of the mirror, which has no network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = tmp_path / "olah.toml"
    settings.write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nmirrors-path = ["{tmp_path / "mirrors"}"]\n'
        f'repos-path = "{tmp_path / "repos"}"\n[accessibility]\noffline = true\n'
    )
    command = [str(olah), "--config", str(settings), "--log-path", str(tmp_path / "logs")]
    with (tmp_path / "olah.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert process.poll() is None, "the mirror ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the mirror does not answer")


def test_a_mirror_serves_what_was_pushed_pinned_and_by_name(
    mirror: str, tiny: EditArtifact, other: EditArtifact
) -> None:
    loaded = EditArtifact.from_pretrained(REPO, endpoint=mirror, revision="v1")
    assert loaded.digest == tiny.digest
    assert loaded.origin is not None
    commit = loaded.origin.reference.commit
    assert loaded.origin.resolved == "hub"
    pinned = EditArtifact.from_pretrained(
        REPO, endpoint=mirror, revision=commit, force_download=True
    )
    assert pinned.digest == tiny.digest
    assert EditArtifact.verify(REPO, endpoint=mirror, subfolder="other") == other.digest
    assert EditArtifact.inspect(REPO, endpoint=mirror)["card"] == "as written"
    with pytest.raises(HubError) as caught:  # of what it lacks, the mirror asks for a log-in
        EditArtifact.verify(REPO, endpoint=mirror, subfolder="third")
    assert (caught.value.reason, caught.value.status) == ("not_found", 401)


def test_a_byte_that_changed_on_the_mirror_is_found(mirror: str, clone: Path) -> None:
    for blob in clone.glob(".git/lfs/objects/*/*/*"):
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"edit\.safetensors was changed"):
        EditArtifact.from_pretrained(REPO, endpoint=mirror, revision="v1")
