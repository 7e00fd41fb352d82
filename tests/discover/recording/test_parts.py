"""A recording that two processes share is that of one, in another order."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from salve_plugin.adapter import attach
from salve_plugin.demo import digits
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.parts import Share, join, part_folder
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.training.rows import RowReader, held_out
from salve_plugin.errors import InputError, ReadError

WEIGHTS = Path(__file__).parents[2] / "fixtures" / "digits_resnet.safetensors"

SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from salve_plugin.adapter import attach
from salve_plugin.demo import digits
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError

torch.set_num_threads(1)
weights, out = sys.argv[1:]
_, test = digits.load_digits()
images, labels = test.images[:70], test.labels[:70]
hooked = attach(digits.load("resnet", Path(weights)))
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
loader = DataLoader(TensorDataset(images, labels), batch_size=20)
batches = [(images[at : at + 20], labels[at : at + 20]) for at in range(0, 70, 20)]
data = TensorDataset(images, labels)
sampled = DataLoader(data, batch_size=20, sampler=DistributedSampler(data, shuffle=True))

class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(images, labels))

sources = {
    "loader": loader, "list": batches, "sampler": sampled,
    "prepared": accelerator.prepare(DataLoader(data, batch_size=20)),
    "prepared sampler": accelerator.prepare(sampled),
    "prepared stream": accelerator.prepare(DataLoader(Stream(), batch_size=20)),
}
for name, source in sources.items():
    for _ in range(2):  # the second time it is all there
        acts = record(
            hooked, source, folder=f"{out}/{name}", progress=False, accelerator=accelerator
        )
        assert acts.n_images == 70, (name, acts.n_images)
rank = accelerator.process_index
halves = Subset(data, range(rank, 70, 2))
broken = [*batches[:3], (images[:5], labels[:5] + 99)]  # the second process's last batch
for name, source, words in (
    ("halves", DataLoader(halves, batch_size=20), "loaders of the processes are different"),
    ("batch lists", batches[2 * rank :][:2], "loaders of the processes are different"),
    ("broken", broken, "out of range" if rank else "process 1 could not record its part"),
):
    try:
        record(hooked, source, folder=f"{out}/{name}", progress=False, accelerator=accelerator)
    except (InputError, OSError) as error:
        assert words in str(error), (name, error)
    else:
        raise AssertionError(name)
accelerator.end_training()
os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts although all is done
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(port), str(folder / "script.py"), str(WEIGHTS), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize(
    "kind",
    ["loader", "list", "sampler", "prepared", "prepared sampler", "prepared stream"],
)
def test_two_processes_record_the_rows_of_one(
    kind: str, shared: Path, digits_resnet: nn.Module, digits_test: digits.Split, tmp_path: Path
) -> None:
    images, labels = digits_test.images[:70], digits_test.labels[:70]
    loader = DataLoader(TensorDataset(images, labels), batch_size=20)
    alone = record(attach(digits_resnet), loader, folder=tmp_path, progress=False)
    together = Activations.load(shared / kind, verify=True)
    # batches 0 and 2 are the first process's, 1 and 3 the second's; the last has ten images
    order = [*range(20), *range(40, 60), *range(20, 40), *range(60, 70)]
    torch.testing.assert_close(together.tensor(), alone.tensor()[order], rtol=1e-6, atol=1e-6)
    assert torch.equal(together.labels(), alone.labels()[order])
    batch = next(together.batches(100))
    assert batch.images.tolist() == list(range(70))
    chosen = together.batches(100, keep=lambda images: images % 7 == 3)
    assert torch.cat([batch.images for batch in chosen]).tolist() == list(range(3, 70, 7))
    training = torch.cat(list(RowReader(together, None).training(100)))
    torch.testing.assert_close(training, together.tensor()[~held_out(torch.arange(70))])
    assert (together.n_rows, together.n_images) == (70, 70)
    assert together.model_sha256 == alone.model_sha256
    assert together.network_sha256 == alone.network_sha256 is not None


def test_a_missing_foreign_or_unfinished_part_is_refused(shared: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(shared / "list", folder)
    with pytest.raises(ReadError, match=r"no recording in .*part-00002"):
        join(folder, 3)
    index = part_folder(folder, 1) / "index.json"
    whole = index.read_text()
    index.write_text(whole.replace('"finished": true', '"finished": false'))
    with pytest.raises(ReadError, match=r"part 1 of the recording .* is unfinished"):
        join(folder, 2)
    index.write_text(whole.replace('"model_sha256": "', '"model_sha256": "0'))
    with pytest.raises(InputError, match=r"part 1 .* another model_sha256 than part 0"):
        join(folder, 2)
    (part_folder(folder, 0) / "shard-00000.safetensors").unlink()
    with pytest.raises(ReadError, match=r"shard-00000.safetensors is missing"):
        Activations.load(folder)


def test_a_shard_outside_the_folder_is_refused(shared: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(shared / "list", folder)
    index = folder / "index.json"
    index.write_text(index.read_text().replace("part-00001/", "part-00001/../part-00001/"))
    with pytest.raises(ReadError, match="is damaged"):
        Activations.load(folder)


def test_batches_are_dealt_out_without_overlap_and_again_each_time() -> None:
    class Two(Team):
        """Stands for the first of two processes."""

        size = 2

    items = [(torch.zeros(1, 2), torch.tensor([number])) for number in (1, 2, 3, 4, 5)]
    first = Share(items, Two())
    for _ in range(2):
        assert [int(labels) for _, labels in first] == [1, 3, 5]
    assert len(first) == 3
