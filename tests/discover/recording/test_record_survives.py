"""Recording through what ends a process or fills a disk, for real, and in bounded memory."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import WriteError
from salve_plugin.hooks import HookedModel

FIXTURES = Path(__file__).parents[2] / "fixtures"
Batches = list[tuple[Tensor, Tensor]]

PREPARE = """
import os, resource, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from salve_plugin.adapter import attach
from salve_plugin.demo import digits
from salve_plugin.discover.recording import recorder
from salve_plugin.discover.recording.stream import record

hooked = attach(digits.load("resnet", Path(sys.argv[1])))
target = Path(sys.argv[2])
"""

KILLED = (
    PREPARE
    + """
images = torch.randn(60, 1, 32, 32, generator=torch.Generator().manual_seed(0))
batches = list(digits.Split(images, torch.arange(60) % 10).batches(10))
replace = os.replace

def run(name, loader, deadly):
    def dying(old, new):
        if Path(new).name == deadly and Path(new).parent.name == name:
            names = {p.name for p in Path(new).parent.iterdir()}
            if deadly != "index.json" or "shard-00001.safetensors" in names:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    child = os.fork()
    if child == 0:
        os.replace = dying
        record(hooked, loader, folder=target / name, shard_rows=20, progress=False)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def until(number):
    yield from batches[:number]
    os.kill(os.getpid(), signal.SIGKILL)

assert run("whole", batches, None) == 0
recorder.KEEP_SECONDS = 0.0  # every batch is a partial shard first
assert run("kept", until(5), None) == signal.SIGKILL
recorder.KEEP_SECONDS = 30.0
assert run("between-batches", until(5), None) == signal.SIGKILL
assert run("before-the-shard-counts", batches, "shard-00001.safetensors") == signal.SIGKILL
assert run("before-the-index-counts", batches, "index.json") == signal.SIGKILL
for folder in sorted(target.iterdir()):
    print(folder.name, *sorted(p.name for p in folder.iterdir()))
for folder in sorted(target.iterdir()):
    assert run(folder.name, batches, None) == 0
"""
)


def in_a_new_process(code: str, target: Path) -> str:
    weights = FIXTURES / "digits_resnet.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, str(weights), str(target)],
        capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_recording_continues_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL between batches, before a shard is renamed into place, and before the index is."""
    left = {
        name: sorted(f for f in found if not f.startswith("."))
        for name, *found in map(str.split, in_a_new_process(KILLED, tmp_path).splitlines())
    }
    # What each kill left: only the index makes a shard count.
    first, second = "shard-00000.safetensors", "shard-00001.safetensors"
    assert left["kept"] == ["index.json", first, second, "shard-00002.partial-1.safetensors"]
    assert left["between-batches"] == ["index.json", first, second]
    assert left["before-the-shard-counts"] == ["index.json", first]
    assert left["before-the-index-counts"] == ["index.json", first, second]
    whole = files(tmp_path / "whole")
    assert len(whole) == 4
    for name in left:
        assert files(tmp_path / name) == whole
    assert Activations.load(tmp_path / "between-batches", verify=True).n_rows == 60


def smaller_then_larger(batches: Batches) -> Batches:
    """Return a batch of 2, then one of 58: two shards, 1 kB and 30 kB of activations."""
    images = torch.cat([x for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    return [(images[:2], labels[:2]), (images[2:], labels[2:])]


def assert_resumes_after_full_disk(folder: Path) -> None:
    assert sorted(files(folder)) == ["index.json", "shard-00000.safetensors"]
    assert json.loads((folder / "index.json").read_text())["finished"] is False


def test_a_file_that_cannot_grow_stops_the_recording_and_it_continues_later(
    hooked_resnet: HookedModel, few_batches: Batches, tmp_path: Path
) -> None:
    loader = smaller_then_larger(few_batches)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the shard's 30 kB exceed it
    try:
        with pytest.raises(WriteError, match=r"cannot write .*shard-00001\.safetensors"):
            record(hooked_resnet, loader, folder=tmp_path, shard_rows=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_resumes_after_full_disk(tmp_path)
    assert record(hooked_resnet, loader, folder=tmp_path, shard_rows=1, progress=False).n_rows == 60


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 28 kB; mounting needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_recording_and_it_continues_later(
    hooked_resnet: HookedModel, few_batches: Batches, tiny_disk: Path
) -> None:
    loader = smaller_then_larger(few_batches)
    with pytest.raises(WriteError, match="No space left on device"):
        record(hooked_resnet, loader, folder=tiny_disk / "x", shard_rows=1, progress=False)
    assert_resumes_after_full_disk(tiny_disk / "x")
    subprocess.run(["mount", "-o", "remount,size=1m", str(tiny_disk)], check=True)
    acts = record(hooked_resnet, loader, folder=tiny_disk / "x", shard_rows=1, progress=False)
    assert acts.n_rows == 60


MEASURED = (
    PREPARE
    + """
def loader(batches):
    random = torch.Generator().manual_seed(0)
    for _ in range(batches):
        yield torch.randn(16, 1, 32, 32, generator=random), torch.arange(16) % 10

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(shards):  # of 1 MiB: 16 images, 32 x 32 positions, 16 channels, 4 bytes
    site = "blocks.0.hook_resid_post"
    acts = record(hooked, loader(shards), site, shard_rows=1, progress=False)
    assert len(list(acts.folder.glob("shard-*"))) == shards
    return sum(len(batch) for batch in acts.batches(1000))

run(3)
before = peak()
rows = run(50)
print(rows * 16 * 4, peak() - before)
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """A recording of 50 MiB in shards of 1 MiB, written and read, after one of 3 MiB."""
    recorded, growth = map(int, in_a_new_process(MEASURED, tmp_path).split())
    assert recorded == 50 * 2**20
    assert growth < 12 * 2**20
