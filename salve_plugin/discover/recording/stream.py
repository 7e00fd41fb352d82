"""Stream a site's activations over a data set to disk, so that a killed run can be continued."""

import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labelling import Labelling, check_labelling
from salve_plugin.discover.recording.labels import Labels, n_outputs
from salve_plugin.discover.recording.loader import (
    LabelledImages,
    labelled_batches,
    length,
)
from salve_plugin.discover.recording.parts import Share, check_together, join, part_folder
from salve_plugin.discover.recording.recorder import Recorder
from salve_plugin.discover.recording.shards import Index
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.recording.unsplit import unsplit
from salve_plugin.errors import InputError, ReadError, SalveError, WriteError
from salve_plugin.faces.progress import Update, bar
from salve_plugin.hooks import HookedModel, SiteLike, check_attached, evaluating, reading
from salve_plugin.images import run as run_images
from salve_plugin.images import usable_device
from salve_plugin.integers import whole
from salve_plugin.network import network_digest
from salve_plugin.site import HEAD_INPUT, Site
from salve_plugin.store.digest import fingerprints, state_digest
from salve_plugin.store.files import usable
from salve_plugin.store.lock import locked
from salve_plugin.store.owner import make_scratch

if TYPE_CHECKING:
    from accelerate import Accelerator


def record(
    hooked: HookedModel,
    loader: Iterable[Any],
    site: SiteLike = HEAD_INPUT,
    *,
    folder: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    labels: Labelling | None = None,
    shard_rows: int = 65536,
    progress: bool = True,
    device: torch.device | str | None = None,
    accelerator: "Accelerator | None" = None,
) -> Activations:
    """Run the model over a data set and keep the activations of one site on disk.

    Pooled sites give one row for each image, maps one for each position, token sites one for each
    patch: class and register tokens are left out. The model runs in eval mode without gradients
    and is left as it was found. Rows are stored in the network's own floating type.

    Memory holds one shard, and three copies of it while it is written. A shard counts once it is
    whole and the index lists it; what makes no shard yet is written too, every half minute, and
    when an error or Ctrl-C ends the recording. After a crash, a kill or a full disk the same call
    continues where the last one was: batches that are on disk are read from the loader and
    compared, not run through the model. The comparison covers the labels, the images' shape and
    type, and 1024 evenly spaced values of each image. The result is byte for byte that of an
    uninterrupted run. If the folder holds the finished recording already, only the first batch and
    the number of batches are compared.

    Args:
        hooked: the attached model.
        loader: any iterable of (images, labels) batches, in the same order each time
            (`shuffle=False`, no random augmentation); labels are class indices (batch,), one-hot
            rows, or 0 and 1 for a classifier with one logit, which counts as two classes. Of a
            loader that is split among processes already, by `accelerator.prepare()` or a
            `DistributedSampler`, the whole data set is read.
        site: the activation: hook-point name, module, or whatever `HookedModel.site` takes.
        folder: where the recording goes; None is a temporary folder (below
            `tempfile.gettempdir()`) that is removed together with the returned object.
        classes: class names by label; by default `loader.dataset.classes`, if there is one. Names
            of some classes of the model, as the model's library knows them, are found among them,
            and the labels become the model's class indices. Empty for labels that are those
            already, whatever the data set says.
        labels: what the loader says of an image: its "class"; "multi-hot", which of the model's
            classes it belongs to, (batch, classes) of 0 and 1; or a "target" (batch,), of a
            regression with one output. None takes all for what those of the first batch look like:
            rows with one 1 each are classes.
        shard_rows: a shard ends with the batch that reaches this many rows, or 128 MiB.
        progress: show a progress bar on stderr.
        device: where images are moved; by default where the model's parameters are.
        accelerator: of Hugging Face `accelerate`: its processes share the data set, batch by batch,
            each with a part below `folder`, which all must see; images are then in order of
            process. To continue, start as many processes as before.

    Raises:
        UnknownSiteError: if the model has no such site.
        InputError: if the loader is empty, the model does not take its images, labels are not class
            indices, class names are not the model's nor one for each of its classes, activations
            are NaN or infinite, the device cannot be used, the folder holds a recording of another
            model, site or data, or the loader yields images more than once or is split among
            processes in a way that cannot be undone.
        ReadError: if the data set cannot read an image, or a shard in the folder is damaged; what
            was recorded stays.
        FolderInUseError: if another job records into the folder.
        WriteError: if the disk is full or not writable; what was recorded stays.

    Example:
        >>> acts = record(hooked, loader, folder="recording")                   # doctest: +SKIP
        >>> acts = record(hooked, loader, site=net.stage1, labels="multi-hot")  # doctest: +SKIP
    """
    check_attached(hooked)
    check_labelling(labels)
    shard_rows = whole(shard_rows, "shard_rows", least=1)
    team = Team(accelerator)
    loader = unsplit(loader)
    if team.size > 1:
        return _record_together(
            team, hooked, loader, site, folder,
            classes=classes, labels=labels, shard_rows=shard_rows, progress=progress,
            device=device,
        )  # fmt: skip
    named = Labels.of(hooked.model, n_outputs(hooked), loader, classes)
    index = _empty_index(hooked, hooked.site(site), named)
    run = _forward(hooked, index.site, device)
    with _folder(folder) as (target, temporary):
        # It reads what is there first, and refuses another recording before the model runs.
        recorder = Recorder(target, index, shard_rows)
        with (
            evaluating(hooked.model, keep_autocast=True),
            bar("recording batches", length(loader), progress) as advance,
        ):
            several = (hooked.description.get("num_classes") or 1) != 1
            try:
                _fill(recorder, loader, run, named, labels, several, advance)
            except BaseException as error:
                if not temporary:
                    _keep(recorder, error)
                raise
        activations = Activations(target, recorder.index)
    if temporary:
        # It runs when the interpreter exits, too, where `__del__` need not.
        weakref.finalize(activations, shutil.rmtree, target, ignore_errors=True)
    return activations


def _keep(recorder: Recorder, error: BaseException) -> None:
    """Keep what is whole when a recording ends before its time, and say how to go on."""
    if isinstance(error, WriteError):  # there is no room for more
        return
    with suppress(SalveError):
        n_images = recorder.keep()
        if n_images:
            error.add_note(
                f"{n_images} images are recorded in {recorder.folder}: repeat the call to go on "
                "with the others"
            )


def _record_together(
    team: Team,
    hooked: HookedModel,
    loader: Iterable[Any],
    site: SiteLike,
    folder: str | os.PathLike[str] | None,
    *,
    classes: Sequence[str] | None,
    progress: bool,
    **options: Any,
) -> Activations:
    """Record this process's part; the first process joins the parts once all are there."""
    if folder is None:
        raise InputError("several processes record into one folder that all of them see: name it")
    target, share = usable(folder), Share(loader, team)
    failure: SalveError | None = None
    images = 0
    with ExitStack() as stack:
        try:
            if team.rank == 0 and not Index.is_finished(target):
                stack.enter_context(locked(target))  # each part has a lock of its own
            images = record(
                hooked, share, site, folder=part_folder(target, team.rank),
                classes=classes, progress=progress and team.rank == 0, **options,
            ).n_images  # fmt: skip
        except SalveError as error:
            failure = error
        # An index is joined from those of all parts, and nobody may read it before it is there; nor
        # may a process that failed leave the others waiting.
        try:
            check_together(team, share, images, failed=failure is not None)
        except SalveError as error:
            raise failure or error from None
        failure = None
        try:
            if team.rank == 0:
                join(target, team.size)
        except SalveError as error:
            failure = error
        # Told to all, who wait here for the joined index.
        if int(team.sum(torch.tensor(int(failure is not None), device=team.device))):
            raise failure or ReadError(
                "process 0 could not join the parts, its own message says why; record again, then "
                "every process continues its part"
            )
    return Activations.load(folder)


def _fill(
    recorder: Recorder,
    loader: Iterable[Any],
    run: Callable[[LabelledImages], Tensor],
    named: Labels,
    labelling: Labelling | None,
    several_logits: bool,
    advance: Update,
) -> None:
    """Record every batch that is not on disk yet; compare the others."""
    n_batches = length(loader)
    recorded = len(recorder.recorded)
    if n_batches is not None and (
        n_batches < recorded or (recorder.index.finished and n_batches != recorded)
    ):
        raise InputError(recorder.changed(f"{n_batches} batches", f"the {recorded} recorded"))
    seen = 0
    # Labels of a data set's own names are checked where they are turned into the model's.
    bound = named.n_classes if named.indices is None else None
    checked = labelled_batches(loader, bound, several_logits=several_logits, labelling=labelling)
    for batch in map(named.of_model, checked):
        if batch.labels.ndim == 2 and not several_logits:
            raise InputError(
                f"batch {batch.number} has multi-hot labels of {batch.labels.shape[1]} classes, "
                "and the model has one output; give one column, hot[:, column], as labels"
            )
        seen += 1
        fingerprint = recorder.compared(batch)
        if recorder.index.finished:
            advance(recorded)
            return
        # Batches that are on disk already are read and compared, so that a data set that changed
        # meanwhile is noticed, but cost no forward pass.
        if batch.number >= recorded:
            recorder.add(run(batch), batch, fingerprint)
        advance(seen)
    if seen < recorded:
        raise InputError(recorder.changed(f"{seen} batches", f"the {recorded} recorded"))
    recorder.finish()


def _empty_index(hooked: HookedModel, site: Site, labels: Labels) -> Index:
    # Each tensor is hashed once, for both digests.
    prints = fingerprints(hooked.model)
    return Index(
        site=site,
        model=hooked.description,
        model_sha256=state_digest(prints),
        classes=labels.classes,
        n_classes=labels.n_classes,
        network_sha256=network_digest(hooked, prints),
    )


def _forward(
    hooked: HookedModel, site: Site, device: torch.device | str | None
) -> Callable[[LabelledImages], Tensor]:
    """Return the function from a batch to its finite rows (rows, width) on the CPU."""
    target = usable_device(device)

    @torch.no_grad()
    def run(batch: LabelledImages) -> Tensor:
        with reading(hooked.model, [site]) as seen:
            run_images(hooked.model, batch.images, f"batch {batch.number}", target)
        rows = site.recorded_rows(seen[site.name]).cpu().contiguous()
        bad = int((~rows.isfinite()).sum())
        if bad:
            raise InputError(
                f"batch {batch.number} has {bad} NaN or infinite activations at '{site.name}' "
                f"(of {rows.numel()}); check the images, the weights and the precision"
            )
        return rows

    return run


@contextmanager
def _folder(folder: str | os.PathLike[str] | None) -> Iterator[tuple[Path, bool]]:
    """Make the folder, for this job alone; a temporary one (True) is removed if recording fails."""
    if folder is None:
        # Removed by the finalizer of what is returned, or here if nothing comes of it.
        target = make_scratch("activations")
        try:
            yield target, True
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        return
    target = usable(folder)
    if Index.is_finished(target):  # it is only read, by as many as want to
        yield target, False
        return
    with locked(target):
        yield target, False
