"""A study as pages: what its dictionary holds, what classes depend on, and a bench for edits."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from salve_plugin.control.networks import Networks
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import profile
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import check_of_model
from salve_plugin.discover.sweep import Trial
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.integers import whole
from salve_plugin.report.content import Content
from salve_plugin.report.evidence import check, check_own
from salve_plugin.report.folder import page_files, save
from salve_plugin.report.gallery import Images
from salve_plugin.report.scripts import script
from salve_plugin.store.files import usable
from salve_plugin.validate.activity import activity
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence
from salve_plugin.validate.quality import Quality


def atlas(
    hooked: HookedModel,
    dictionary: Dictionary,
    acts: Activations,
    folder: str | os.PathLike[str],
    *,
    images: Any = None,
    quality: Quality | None = None,
    evidence: LatentEvidence | None = None,
    trials: Sequence[Trial] = (),
    title: str = "",
    study: str | None = None,
    top: int = 12,
    mapped: int = 64,
    maximized: int | Sequence[int] = 0,
    bench_images: int = 2000,
    stepped: int = 16,
    force: bool = False,
) -> Path:
    """Write a folder of pages that opens from disk, without a server or a network.

    An overview, a page for every class and every latent, and a bench on which edits are tried on
    recorded activations. It shows names of classes and files, thumbnails of the latents' top images
    and, for the bench, the head's weights: share it as you would share those. The same arguments
    give the same bytes. What is computed from all of the recording: accuracy, profile, densities
    and galleries; from the images of the bench: critical strengths and what edits do.

    Args:
        hooked: the attached model, without edits.
        dictionary: of it.
        acts: recording of the dictionary's site. The bench needs the head's input.
        folder: made if missing; an earlier atlas of the same dictionary and recording is replaced.
        images: data set that was recorded, such as the loader's `.dataset`: its item i is the i-th
            (image, label). Only top images are read. None: galleries have no pictures.
        quality: from `salve.quality(dictionary, acts, hooked=hooked)`, shown beside its controls.
        evidence: from `salve.evidence(hooked, dictionary, acts)`: each latent's page shows its own
            numbers beside their nulls.
        trials: from `salve.sweep`: other dictionaries, shown beside this one by R² and L0.
        title: heading; by default the model's name.
        study: folder for the `salve edit` lines that the bench writes; None: Python only.
        top: images in a latent's gallery.
        mapped: latents that get Grad-FAM maps, first those that classes depend on. Each of their
            top images costs a forward pass, and a backward pass for each latent where the
            dictionary's site is no mean of a map.
        maximized: latents that get an image made to drive them, see `salve.maximize`: which, or how
            many, first those that classes depend on. Each costs 128 forward and backward passes.
        bench_images: recorded images on the bench, of every class the same share.
        stepped: latents whose suppression on all rows is computed for every strength ahead, where
            the page cannot compute it live.
        force: replace what lies there, whatever it is.

    Returns:
        The path of `index.html`.

    Raises:
        BaseMismatchError: if model, dictionary and recording are not of one network.
        InputError: if they are not of one site, quality or evidence are of another dictionary, the
            images are not the recorded ones, a number is out of range, or something else lies in
            the folder.
        WriteError: if it cannot be written; what was there is whole.
    """
    check_attached(hooked)
    place = usable(folder)
    top, bench_images = whole(top, "top", least=1), whole(bench_images, "bench_images", least=1)
    mapped, stepped = whole(mapped, "mapped", least=0), whole(stepped, "stepped", least=0)
    # Which, or else how many.
    if isinstance(maximized, Sequence) and not isinstance(maximized, str):
        maximized = [whole(latent, "maximized", least=0) for latent in maximized]
    else:
        maximized = whole(maximized, "maximized", least=0)
    Networks(hooked).check_present("the recording", acts.network_sha256)
    features = profile(dictionary, acts)
    check_of_model(acts.classes, len(features.counts))
    if evidence is not None:
        check(evidence, dictionary, len(features.counts))
    if quality is not None:
        check_own("quality", quality, dictionary)
    pictures = None if images is None else Images.of(hooked, acts, images)
    active = activity(dictionary, acts, top)
    if pictures is not None:
        # Each once, in the order of the latents: what one latent's page shows lies in few files.
        shown = tuple(dict.fromkeys(active.top_images.flatten().tolist()))
        pictures = replace(pictures, shown=shown)
    content = Content(
        hooked, dictionary, acts, features, active, pictures, quality, evidence, tuple(trials)
    )
    pages = content.pages(
        title, study, mapped=mapped, maximized=maximized, bench_images=bench_images, stepped=stepped
    )
    written = {f"data/{key}.js": script(key, value) for key, value in pages.items()}
    written |= page_files()
    about = {
        "dictionary": dictionary.digest, "network": acts.network_sha256,
        "labels": acts.labels_sha256, "images": acts.n_images,
    }  # fmt: skip
    return save(place, written, about, force=force) / "index.html"
