"""The processes that train one dictionary together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Team:
    """Processes that share each batch, led by Hugging Face `accelerate`; by default one alone.

    Attributes:
        accelerator: of this process; None is a process alone.
    """

    accelerator: "Accelerator | None" = None

    @property
    def size(self) -> int:
        """Number of processes."""
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    @property
    def device(self) -> torch.device:
        """Where tensors that the processes exchange must be."""
        return torch.device("cpu") if self.accelerator is None else self.accelerator.device

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's rows of a batch: every size-th, from its rank on.

        A batch is cut to a multiple of the number of processes, so that every process has the same
        number and the mean of their means is the mean over the batch.
        """
        whole = len(rows) - len(rows) % self.size
        return rows[self.rank : whole : self.size]

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes; without gradient."""
        tensor = tensor.detach()
        if self.accelerator is None or self.size == 1:
            return tensor
        summed: Tensor = self.accelerator.reduce(tensor.clone(), reduction="sum")
        return summed

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over processes; without gradient."""
        return self.sum(tensor) / self.size

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the processes' tensors, all of one shape, in order of rank; without gradient."""
        tensor = tensor.detach()
        if self.accelerator is None or self.size == 1:
            return tensor
        # Collectives take contiguous memory only, which a slice need not be.
        gathered: Tensor = self.accelerator.gather(tensor.contiguous())
        return gathered

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def average_gradients(self, parameters: list[Tensor]) -> None:
        """Replace every gradient by its mean over processes, in one exchange."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # Each exchange costs a round trip whatever its size.
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))
