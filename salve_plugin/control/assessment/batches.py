"""Logits of the same images before and after an edit, batch by batch, as often as needed.

Of a recording of the classifier's input they are computed anew each time; of a loader the networks
run once, and what they gave lies in a temporary file.
"""

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.assessment.image_sample import ImageSample
from salve_plugin.control.base import bare
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import check_logits
from salve_plugin.control.solving import check_labels, two_sided
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import Labels
from salve_plugin.discover.recording.loader import ImagesDigest, labelled_batches
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, evaluating, reading
from salve_plugin.images import run as run_images
from salve_plugin.network import OnBaseMismatch

ROWS = 2048
"""Recorded images at once."""


@dataclass(frozen=True, eq=False)
class Head:
    """The classifier: logits = x W^T + b, over the inputs of all its layers side by side.

    One with a single logit has a row of zeros for the class below its threshold, 0.

    Attributes:
        weight: W; without columns if the model has no site at its classifier.
        bias: b.
    """

    weight: Float64[Tensor, "classes width"]
    bias: Float64[Tensor, " classes"]

    @classmethod
    def of(cls, hooked: HookedModel) -> "Head | None":
        """Return the classifier of a model as it is; None if none is known."""
        terms = [hooked.unembed(name, partial=True) for name in hooked.head_sites]
        if not terms:
            return None
        weight = torch.cat([weight for weight, _ in terms], 1)
        # On the CPU first: not every device has float64.
        weight, bias = weight.cpu().double(), sum(bias.cpu().double() for _, bias in terms)
        assert isinstance(bias, Tensor)
        if len(bias) == 1:  # what `two_sided` makes of its logit
            weight = torch.cat([torch.zeros_like(weight), weight])
            bias = torch.cat([torch.zeros_like(bias), bias])
        return cls(weight, bias)

    def logits(self, inputs: Tensor) -> Float64[Tensor, "images classes"]:
        """Return the logits of inputs (images, width)."""
        return torch.addmm(self.bias, inputs.double(), self.weight.T)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images.

    Attributes:
        labels: class indices.
        before: logits without the edit.
        after: logits with it.
        inputs: what the classifier reads without the edit; None if no site there is known.
    """

    labels: Int64[Tensor, " images"]
    before: Float64[Tensor, "images classes"]
    after: Float64[Tensor, "images classes"]
    inputs: Tensor | None


class Batches(ABC):
    """The images of one source, in its order.

    Attributes:
        images: digest of the images; None if it is not known.
    """

    images: str | None

    @abstractmethod
    def labels(self) -> Int64[Tensor, " images"]:
        """Return the labels of all images, without computing anything else."""

    @property
    def recording(self) -> str | None:
        """Digest of the recorded inputs; None if the network ran."""
        return None

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches, from the first on."""


class Recorded(Batches):
    """The head inputs of a recording, through the classifier before and after."""

    def __init__(self, acts: Activations, before: Head, after: Head) -> None:
        """Read nothing yet but check that it fits.

        Raises:
            InputError: if there are several rows an image, or they have another width.
        """
        if acts.n_rows != acts.n_images or acts.width != before.weight.shape[1]:
            raise InputError(
                f"{acts!r} has {acts.n_rows} rows of {acts.width} features for {acts.n_images} "
                f"images; one of {before.weight.shape[1]} an image was expected, what the "
                "classifier reads: record(hooked, loader), or pass the loader itself"
            )
        self._acts, self._before, self._after = acts, before, after
        self.images = acts.images_sha256

    def labels(self) -> Int64[Tensor, " images"]:
        """Return the labels of all images."""
        return self._acts.labels().long()

    @property
    def recording(self) -> str:
        """SHA-256 over the inputs, float32, in order."""
        digest = hashlib.sha256()
        # In pieces of any size: it is of the bytes, one after the other.
        for rows in self._acts.batches(ROWS):
            digest.update(rows.x.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches, from the first on.

        Raises:
            InputError: if a label is no class of the model.
        """
        for rows in self._acts.batches(ROWS):
            check_labels(rows.labels, len(self._before.bias))
            before, after = (head.logits(rows.x) for head in (self._before, self._after))
            check_logits(before, len(rows))
            check_logits(after, len(rows))
            yield Batch(rows.labels.long(), before, after, rows.x)


class Spooled(Batches):
    """What two networks gave for the images of a loader, in a temporary file."""

    def __init__(self, file: IO[bytes], labels: list[Tensor], images: str) -> None:
        """Take over a file that `run` wrote, and the labels of each batch in it."""
        self._file, self._labels, self.images = file, labels, images

    def labels(self) -> Int64[Tensor, " images"]:
        """Return the labels of all images."""
        return torch.cat(self._labels)

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches, from the first on."""
        self._file.seek(0)
        for labels in self._labels:
            # One array lies behind the other: each load reads one, and leaves the file at the next.
            before, after, inputs = (
                torch.from_numpy(np.load(self._file, allow_pickle=False)) for _ in range(3)
            )
            yield Batch(
                labels, before.double(), after.double(), inputs if inputs.shape[1] else None
            )

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


@torch.no_grad()
def run(
    hooked: HookedModel,
    edit: Edit,
    loader: Iterable[Any],
    on_base_mismatch: OnBaseMismatch = "error",
    sample: ImageSample | None = None,
) -> Spooled:
    """Run a model, and a copy of it with the edit, over a loader, once.

    Both run in eval mode. The model's own parameters are never touched; its modes and buffers are
    as before afterwards, on error too. Some of the images are left in `sample`.

    Raises:
        InputError: if the loader is empty, a label is no class of the model, or a model returns
            something else than finite logits (images, classes).
        SalveError: if the edit cannot be applied to the model.
    """
    model = bare(hooked)
    # A copy, so that no other thread ever sees the edit, and nothing has to be taken back.
    edited = edit.edited(model, on_base_mismatch=on_base_mismatch)
    sites = [hooked.site(name) for name in hooked.head_sites]
    digest = ImagesDigest()
    labels: list[Tensor] = []
    names: Labels | None = None
    # Without a name on POSIX, so that not even a killed process leaves it behind.
    file = tempfile.TemporaryFile()  # noqa: SIM115 # it is handed over
    try:
        with evaluating(model), evaluating(edited):
            for batch in labelled_batches(loader, None):
                name = f"batch {batch.number}"
                with reading(model, sites) as seen:
                    before = run_images(model, batch.images, name)
                after = run_images(edited, batch.images, name)
                for logits in (before, after):
                    check_logits(logits, len(batch.labels))
                before, after = two_sided(before), two_sided(after)
                # Only here: of a model without a known classifier its logits tell how many classes
                # it has.
                names = names or Labels.of(model, before.shape[1], loader)
                labels.append(names.of_model(batch).labels)
                check_labels(labels[-1], before.shape[1])
                rows = [site.rows(seen[site.name]) for site in sites]
                inputs = torch.cat(rows, 1) if rows else before[:, :0]
                if len(inputs) != len(batch.labels):  # a classifier that is pooled behind itself
                    inputs = before[:, :0]
                for part in (before, after, inputs):
                    # NumPy has no bfloat16; float32 holds it, and float16, exactly.
                    part = part.float() if part.element_size() < 4 else part
                    np.save(file, part.cpu().numpy(), allow_pickle=False)
                digest.add(batch)
                if sample is not None:
                    sample.add(batch.images)
    except BaseException:
        file.close()
        raise
    return Spooled(file, labels, digest.hexdigest())
