"""Blocks of latents that are done, on disk: an interrupted call goes on where it stopped."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from salve_plugin.errors import InputError, ReadError
from salve_plugin.faces.progress import Update
from salve_plugin.store.files import no_such_write, usable, write_atomically


def concatenated(blocks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all blocks, one behind the other."""
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


class Kept:
    """The blocks in a folder; without one, nothing is kept."""

    def __init__(
        self, folder: str | os.PathLike[str] | None, digest: str, name: str = "latents"
    ) -> None:
        """Open a folder, which is made when the first block is kept.

        Args:
            folder: where.
            digest: of all that the blocks depend on.
            name: that their files begin with.
        """
        self._folder = None if folder is None else usable(folder)
        self._digest, self._name = digest, name

    def blocks(
        self,
        n_latents: int,
        size: int,
        make: Callable[[Int64[Tensor, " some"]], Mapping[str, Tensor]],
        update: Update | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return all blocks, of which those that are not there are made and kept.

        Args:
            n_latents: of all blocks.
            size: of one.
            make: from latents to the tensors of their block.
            update: gets how many latents are done.

        Raises:
            SalveError: as `read`, `write` and `make`.
        """
        blocks = []
        for start in range(0, n_latents, size):
            stop = min(start + size, n_latents)
            block = self.read(start)
            if block is None:
                made = make(torch.arange(start, stop))
                # safetensors refuses tensors with gaps between their elements.
                block = {name: tensor.contiguous() for name, tensor in made.items()}
                self.write(start, block)
            blocks.append(block)
            if update is not None:
                update(stop)
        return blocks

    def read(self, start: int) -> dict[str, Tensor] | None:
        """Return the block that starts at a latent; None if it is not there.

        Raises:
            InputError: if it is of another recording, dictionary or setting: it is not overwritten.
            ReadError: if it is damaged.
        """
        path = self._path(start)
        if path is None or not path.exists():
            return None
        try:
            # In the file itself, not beside it: no kill can come between numbers and their digest.
            with safe_open(path, framework="pt") as file:
                digest = (file.metadata() or {}).get("digest")
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (OSError, SafetensorError) as error:
            raise ReadError(
                f"cannot read {path}: {error}; delete the file, and it is computed again"
            ) from error
        if digest != self._digest:
            raise InputError(
                f"{path} is of another recording, dictionary, model or setting; give another "
                "folder, or delete this one"
            )
        return tensors

    def write(self, start: int, tensors: dict[str, Tensor]) -> None:
        """Keep a block.

        Raises:
            WriteError: if it cannot be written; then there is none.
        """
        path = self._path(start)
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:  # such as a file that is called like the folder
                raise no_such_write(path.parent, error) from error
            write_atomically(path, save(tensors, {"digest": self._digest}))

    def _path(self, start: int) -> Path | None:
        file = f"{self._name}-{start:06d}.safetensors"
        return None if self._folder is None else self._folder / file
