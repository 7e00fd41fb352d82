"""The whole edited model beside its artifact: for those who only want to load it."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from salve_plugin.adapter import adapter_of
from salve_plugin.control.applied_edits import status
from salve_plugin.control.base import bare
from salve_plugin.control.edited import check_edited, ledgers_over
from salve_plugin.control.rows import same_bits
from salve_plugin.control.saved import is_saved_with
from salve_plugin.control.slots import slots_of
from salve_plugin.errors import (
    BaseMismatchError,
    EditStateError,
    InputError,
    UnsupportedModelError,
)
from salve_plugin.network import OnBaseMismatch, check_choice
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.audit import put_back
from salve_plugin.share.model_files import MODEL_FILES
from salve_plugin.share.model_state import state_of, tied_to
from salve_plugin.store.checkpoint import in_short
from salve_plugin.store.digest import state_digest
from salve_plugin.store.files import usable
from salve_plugin.store.folders import save_into
from salve_plugin.store.hub.push import Destination, How, Pushed, push
from salve_plugin.store.owner import scratch
from salve_plugin.store.place import Existing, FileChange


def save_edited_model(
    model: nn.Module,
    artifact: EditArtifact,
    folder: str | Path,
    *,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Path:
    """Write the edited model and its artifact into one folder, all or nothing.

    The files are those of `push_edited_model`; `timm.create_model("local-dir:FOLDER",
    pretrained=True)` loads them.

    Args:
        model: as for `push_edited_model`.
        artifact: as for `push_edited_model`.
        folder: created if missing. Another model that lies there is never replaced.
        on_base_mismatch: as for `push_edited_model`.

    Returns:
        The folder.

    Raises:
        SalveError: as `push_edited_model`, but for the Hub.
        FolderInUseError: if another job writes into the folder; it is left to that job.
        WriteError: if the disk is full or the folder cannot be written; nothing is changed.
    """
    path = usable(folder)
    with _exported(model, artifact, on_base_mismatch) as planned:
        return save_into(path, planned)


def push_edited_model(
    model: nn.Module,
    artifact: EditArtifact,
    repo_id: str,
    *,
    on_base_mismatch: OnBaseMismatch = "error",
    **how: Unpack[How],
) -> Pushed:
    """Put the edited model and its artifact on the Hub, in one commit.

    `timm.create_model("hf-hub:user/name", pretrained=True)` then loads the edited model, and
    `EditArtifact.from_pretrained("user/name").revert_(model)` takes the edit back out of it, bit
    for bit. The model's own files are written to a temporary folder (`TMPDIR`) and sent from there.

    Args:
        model: bare or hooked, never changed: the base model, or the base model with exactly the
            artifact's edit. All its tensors are compared with the base (those that the edit does
            not touch by one digest, where the edit knows it), and all that is written with them.
        artifact: with pristine rows, as `EditArtifact.of` makes it: without them nobody could take
            the edit back.
        repo_id: "user/name"; created if missing (not for a pull request). A model at its root that
            is not the artifact's is never replaced.
        on_base_mismatch: "warn" shares a model that differs from the base in parameters that the
            edit does not touch, e.g. fine-tuned below the same head. Those that the edit touches
            must always be the base's: otherwise nobody could take the edit back.
        **how: as for `EditArtifact.push_to_hub`, but for `subfolder`.

    Returns:
        The exact place; with `"hf-hub:user/name@COMMIT"` timm always gets the same bytes.

    Raises:
        EditStateError: if another edit is on the model too, or its weights were changed since.
        BaseMismatchError: if the model is not the one that the edit was made for.
        UnsupportedModelError: if no adapter knows the model, or its library could not load it.
        InputError: if the artifact has no pristine rows, an argument is ill-formed, or another
            model is there.
        WriteError: if the temporary folder is full.
        HubError: as for `EditArtifact.push_to_hub`.
    """
    if how.get("subfolder") is not None:
        raise InputError(
            f"subfolder {how['subfolder']!r} is given, but timm looks for a model at the root of a "
            "repository only; leave it out"
        )
    target = Destination.of(repo_id, how)
    with _exported(model, artifact, on_base_mismatch) as planned:
        return push(target, planned, f"Add the model with edit {artifact.digest[:12]}")


@contextmanager
def _exported(
    model: nn.Module, artifact: EditArtifact, on_base_mismatch: OnBaseMismatch
) -> Iterator[Callable[[Existing], FileChange]]:
    """Write the edited model's files to a temporary folder, check them, and plan with them."""
    from safetensors import safe_open

    check_choice(on_base_mismatch)
    if not isinstance(artifact, EditArtifact):
        raise InputError(f"{artifact!r:.80} is no artifact of an edit; give an EditArtifact")
    edited = _edited(bare(model), artifact)
    state = state_of(edited)
    _check_touched(state, artifact)
    # Before anything large is written.
    _check_rest(state, artifact, on_base_mismatch)
    with scratch("model") as folder:
        adapter = adapter_of(edited)
        adapter.export(edited, folder)
        files = {name: folder / name for name in MODEL_FILES}
        missing = [name for name, path in files.items() if not path.is_file()]
        if missing:
            raise UnsupportedModelError(
                f"{type(adapter).__name__}.export did not write {missing}; this is an error of the "
                "adapter"
            )
        # The file itself is read back: what an adapter wrote is what people will load.
        with safe_open(files["model.safetensors"], framework="pt") as file:
            touched = set(file.keys()) & artifact.edit.base.tensors.keys()
            _check_touched({name: file.get_tensor(name) for name in touched}, artifact)
            wrong = _wrongly_written(file, state)
        if wrong:
            raise UnsupportedModelError(
                f"{type(adapter).__name__}.export wrote other tensors than the model's: "
                f"{in_short(wrong)}; this is an error of the adapter"
            )
        # Within the context, at whose end the files are gone.
        yield partial(artifact.planned, pack=partial(artifact.packed, model=files))


def _edited(model: nn.Module, artifact: EditArtifact) -> nn.Module:
    """Return the model if it is the base with exactly this edit; else a copy that is."""
    edit = artifact.edit
    if artifact.pristine is None:
        raise InputError(
            "the artifact has no pristine rows, so that nobody could take the edit back out of the "
            "model; make it with EditArtifact.of(model, edit, ...)"
        )
    applied = [entry.edit for entry in status(model).applied]
    others = [str(other) for other in applied if other != edit]
    if others:
        raise EditStateError(
            f"the model has other edits than the artifact's, {others}; revert them, or share a "
            "model that has only this one"
        )
    if not applied and not is_saved_with(model, edit, artifact.pristine):
        model = _sparing_copy(model, artifact)
        edit.apply_(model)
    return model


def _sparing_copy(model: nn.Module, artifact: EditArtifact) -> nn.Module:
    """Return a copy for reading that has its own touched weights and shares all other tensors."""
    # deepcopy takes what `memo` holds as copied already: gigabytes are shared, and only what the
    # edit writes to is the copy's own.
    own = {id(slot.parameter) for slot in slots_of(model, artifact.edit.base.tensors).values()}
    shared: dict[int, Any] = {
        id(tensor): tensor
        for tensor in (*model.parameters(), *model.buffers())
        if id(tensor) not in own
    }
    return deepcopy(model, shared)


@torch.no_grad()
def _check_touched(state: Mapping[str, Tensor], artifact: EditArtifact) -> None:
    """Raise unless the touched tensors are, bit for bit, what the edit makes of its base."""
    ledgers = ledgers_over([artifact.edit], artifact.pristine or {})
    absent = sorted(ledgers.keys() - state.keys())
    if absent:
        raise UnsupportedModelError(
            f"the model as it was written has no {absent}, which the edit touches; its adapter "
            "must keep the names of the state dict"
        )
    for path, ledger in ledgers.items():
        check_edited(path, state[path], ledger)


@torch.no_grad()
def _check_rest(
    state: Mapping[str, Tensor], artifact: EditArtifact, on_base_mismatch: OnBaseMismatch
) -> None:
    """Compare everything that the edit does not touch with the base, by one digest over it all."""
    edit = artifact.edit
    if edit.base.state is None:
        return
    # The edit is taken out of the state, not the model: one digest then speaks for all the rest.
    ledgers = ledgers_over([edit], artifact.pristine or {})
    restored = put_back([edit], ledgers, state, tied_to(state, ledgers))
    if state_digest({**state, **restored}) == edit.base.state:
        return
    message = (
        f"the parameters that edit {edit.digest[:12]} touches are those it was made for, but "
        "something else in the model is not that of its base (artifact.audit(base, model) says "
        f"what); load the base model {dict(edit.base.description)}, or pass "
        "on_base_mismatch='warn' to share this one anyway"
    )
    if on_base_mismatch == "error":
        raise BaseMismatchError(message)
    warnings.warn(message, stacklevel=6)  # the line that shares the model


def _wrongly_written(file: Any, state: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors of an open safetensors file that are not the model's, or lack in it."""
    written = set(file.keys())
    tied = tied_to(state, written)  # of a tied weight one name is enough
    return sorted(
        (state.keys() - written - tied.keys())
        | (written - state.keys())
        | {
            name
            for name in written & state.keys()
            if not same_bits(file.get_tensor(name), state[name].cpu())
        }
    )
