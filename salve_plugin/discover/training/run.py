"""How a fit is carried out: checkpoints, precision, progress, processes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salve_plugin.discover.learners.checks import at_least_one
from salve_plugin.discover.training.progress import Progress
from salve_plugin.faces.one_line import one_line
from salve_plugin.store.files import usable

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Run:
    """How a fit is carried out; nothing of it but `precision` changes the result.

    Attributes:
        checkpoint: folder for the state of a running fit; after a kill the same call goes on from
            there, to the same bits. It is removed at the end. One fit at a time uses a folder.
        checkpoint_every: steps between two checkpoints.
        precision: `bfloat16` computes dense products in that type where the processor has
            instructions for it (elsewhere it warns, because it would be many times slower).
        progress: show a progress bar with R², L0 and dead latents on stderr.
        callback: is called with the `Progress` about fifty times.
        accelerator: of Hugging Face `accelerate`, for several processes that share each batch.
    """

    __repr__ = one_line

    checkpoint: Path | str | None = None
    checkpoint_every: int = 500
    precision: str = "float32"
    progress: bool = False
    callback: Callable[[Progress], None] | None = None
    accelerator: "Accelerator | None" = None

    def __post_init__(self) -> None:
        """Check the folder's name, and the number that is counted with.

        Raises:
            InputError: if `checkpoint` is no path, or `checkpoint_every` no whole number of at
                least 1.
        """
        if self.checkpoint is not None:
            usable(self.checkpoint)
        at_least_one(checkpoint_every=self.checkpoint_every)
