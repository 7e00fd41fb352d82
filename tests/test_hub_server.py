"""The Hub on loopback, asked by the real client and by git."""

import random
from pathlib import Path

import pytest
from hub_client import LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


FILES = {
    "a.json": b"{}",
    "deep/er/b.txt": b"text",
    "c.safetensors": noise(50_000),
    "d.bin": noise(6_000_000, 1),  # in parts
}


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_alice")


def push(api: HfApi, repo_id: str, files: dict[str, bytes], **options: str) -> str:
    """Upload files in one commit and return its id."""
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    api.create_repo(repo_id, exist_ok=True)
    return api.create_commit(repo_id, operations, commit_message="push", **options).oid  # type: ignore[call-overload, no-any-return] # options


def test_files_come_back_as_they_were_sent(api: HfApi, repo_id: str, tmp_path: Path) -> None:
    push(api, repo_id, FILES)
    for name, data in FILES.items():
        assert Path(api.hf_hub_download(repo_id, name)).read_bytes() == data
    folder = Path(api.snapshot_download(repo_id, local_dir=tmp_path / "copy"))
    assert all((folder / name).read_bytes() == data for name, data in FILES.items())
