"""Recordings that several tests of this folder share."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.demo import digits
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.shards import Index, Shard
from salve_plugin.discover.recording.stream import record
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site

FIXTURES = Path(__file__).parent.parent / "fixtures"

MakeRecording = Callable[..., Activations]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices are tiny here: waiting for a second thread costs more than it computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def hooked_resnet(digits_resnet: nn.Module) -> HookedModel:
    """The trained ResNet, attached."""
    return attach(digits_resnet)


@pytest.fixture
def few_batches(digits_test: digits.Split) -> list[tuple[Tensor, Tensor]]:
    """Six batches of ten digits."""
    return list(digits.Split(digits_test.images[:60], digits_test.labels[:60]).batches(10))


@pytest.fixture(scope="session", params=["resnet", "vit"])
def digits_recording(request: pytest.FixtureRequest, digits_train: digits.Split) -> Activations:
    """The head's inputs of either trained network on the 1437 training digits."""
    network = digits.load(request.param, FIXTURES / f"digits_{request.param}.safetensors")
    return record(
        attach(network), list(digits_train.batches()), classes=digits.CLASSES, progress=False
    )


@pytest.fixture
def make_recording(tmp_path: Path) -> MakeRecording:
    """Build a finished recording from given rows, labels and image indices, without a model."""

    def make(
        x: Tensor, labels: Tensor, *, shard_rows: int = 1000, classes: tuple[str, ...] | None = None
    ) -> Activations:
        shards = []
        images = torch.arange(len(x))
        for number, start in enumerate(range(0, len(x), shard_rows)):
            part = slice(start, start + shard_rows)
            data = save(
                {
                    "activations": x[part].clone(),
                    "labels": labels[part].clone(),
                    "images": images[part].clone(),
                },
                metadata={"format": "pt"},
            )
            (tmp_path / Shard.name(number)).write_bytes(data)
            rows = len(labels[part])
            digest = hashlib.sha256(data).hexdigest()
            shards.append(Shard(Shard.name(number), rows, rows, len(data), digest, ()))
        site = Site("unembed.hook_in", "fc", "in", "pooled", x.shape[1])
        index = Index(
            site, {}, "", classes, len(classes) if classes else int(labels.max()) + 1,
            dtype="float32", shards=tuple(shards), finished=True,
        )  # fmt: skip
        index.write(tmp_path)
        return Activations.load(tmp_path)

    return make
