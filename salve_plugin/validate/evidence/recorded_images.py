"""The images of a recording, read again one by one where they are needed."""

from collections.abc import Sequence, Sized
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import Labels, n_outputs
from salve_plugin.discover.recording.loader import labelled_batches
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel

BATCH = 64
"""Images that are run at once."""


class RecordedImages:
    """A data set that should be the recorded one; what is read is compared by its labels.

    Attributes:
        labels: of the recording, (images,).
    """

    def __init__(self, hooked: HookedModel, acts: Activations, data_set: Any) -> None:
        """Take a data set whose item i is the i-th recorded (image, label).

        Raises:
            InputError: if it has no length or another one than the recording.
        """
        if not isinstance(data_set, Sized) or not hasattr(data_set, "__getitem__"):
            raise InputError(
                f"images are a {type(data_set).__name__}; expected a data set with a length, whose "
                "item i is the i-th recorded (image, label), such as the loader's .dataset"
            )
        if len(data_set) != acts.n_images:
            raise InputError(
                f"images has {len(data_set)} items, the recording {acts.n_images}; pass the data "
                "set that was recorded, in its order"
            )
        self._data_set: Any = data_set
        self.labels = acts.image_labels().long()
        loader: DataLoader[Any] = DataLoader(data_set)  # type: ignore[arg-type] # has a length
        try:
            self._names = Labels.of(hooked.model, n_outputs(hooked), loader)
        except InputError:  # recorded with names of the caller's own: indices are what is left
            self._names = Labels(None)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def read(self, chosen: Sequence[int]) -> Float[Tensor, "images channels height width"]:
        """Return some images as the model takes them.

        Raises:
            InputError: if a label is not the recorded one, or the images differ in size.
            ReadError: if an image cannot be read.
        """
        # By a loader of one batch: it collates the items, and they are checked, as in `record`.
        loader: DataLoader[Any] = DataLoader(
            Subset(self._data_set, list(chosen)), batch_size=max(1, len(chosen)), collate_fn=_batch,
            generator=torch.Generator(),  # else it draws from torch's global one, which is not ours
        )  # fmt: skip
        (batch,) = labelled_batches(loader, None)
        labels = self._names.of_model(batch).labels.long()
        recorded = self.labels[torch.tensor(list(chosen))]
        wrong = (labels != recorded).nonzero()[:, 0].tolist()
        if wrong:
            raise InputError(
                f"image {chosen[wrong[0]]} has label {int(labels[wrong[0]])}, but "
                f"{int(recorded[wrong[0]])} was recorded in its place; pass the data set that was "
                "recorded, in its order"
            )
        return batch.images


def _batch(items: list[Any]) -> Any:
    """Return items as one batch, as a loader does that is given nothing to do so.

    Raises:
        InputError: if the images differ in size.
    """
    pairs = [item for item in items if isinstance(item, (tuple, list)) and len(item)]
    sizes = {tuple(pair[0].shape) for pair in pairs if isinstance(pair[0], Tensor)}
    if len(sizes) > 1:
        raise InputError(
            f"images have the sizes {sorted(sizes)[:5]}, and a latent's are run together: let the "
            "data set bring them to one size, or leave images out"
        )
    return default_collate(items)
