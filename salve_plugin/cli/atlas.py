"""`salve atlas`: a study as a folder of pages."""

import os
from pathlib import Path

from salve_plugin.cli.images import ImageTree
from salve_plugin.cli.origins import artifact_in
from salve_plugin.cli.output import say, show_json, show_note
from salve_plugin.cli.overwriting import check_outside
from salve_plugin.cli.study import Study
from salve_plugin.errors import InputError, ReadError
from salve_plugin.report.artifact_page import artifact_page
from salve_plugin.report.atlas import atlas
from salve_plugin.validate.evidence.collect import evidence
from salve_plugin.validate.quality import quality


def make(
    folder: Path,
    out: Path | None,
    *,
    mapped: int,
    maximized: int,
    bench_images: int,
    with_quality: bool,
    with_evidence: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write the atlas of a study or of an edit's artifact, and say where it is.

    By default a study's goes into its own folder, an artifact's into one beside it. Images that are
    not there any more, and what cannot be measured on so few, are left out with a note: the atlas
    is worth much without them.

    Raises:
        InputError: if something else lies in `out` and `force` is not given.
        SalveError: if the study cannot be read, its model is another one by now, or the atlas
            cannot be written.
    """
    artifact = artifact_in(folder)
    if artifact is not None:
        # By its own name also where it is "." or "..", which have none.
        here = Path(os.path.abspath(folder))
        beside = here.with_name(f"{here.name}-atlas")
        page = artifact_page(artifact, out or beside, force=force)
        _show(page, [], as_json=as_json)
        return
    study = Study.load(folder)
    place = folder / "atlas" if out is None else out
    check_outside(place, [study.data])
    acts, dictionary, _ = study.parts()
    opened = study.open(acts)
    images: ImageTree | None = None
    missing: list[str] = []
    try:
        images = opened.images(Path(study.data), left_out=study.left_out)
    except (ReadError, InputError) as error:
        missing.append(f"no pictures: {error}")
    measured = None
    if with_quality:
        # Only where the classifier reads the site is splicing free of running the model.
        spliced = opened.hooked if acts.site.name in opened.hooked.head_sites else None
        try:
            measured = quality(dictionary, acts, hooked=spliced)
        except InputError as error:  # too few images to measure it on; the rest can be looked at
            missing.append(f"no quality: {error}")
    speaking = None
    if with_evidence:
        try:
            speaking = evidence(opened.hooked, dictionary, acts, progress=not as_json)
        except InputError as error:  # such as labels that are no single class of each image
            missing.append(f"no evidence: {error}")
    page = atlas(
        opened.hooked, dictionary, acts, place, images=images, quality=measured, evidence=speaking,
        title=f"{study.spec.model} on {Path(study.data).name}", study=str(folder), mapped=mapped,
        maximized=maximized, bench_images=bench_images, force=force,
    )  # fmt: skip
    _show(page, missing, as_json=as_json)


def _show(page: Path, missing: list[str], *, as_json: bool) -> None:
    files = [file for file in page.parent.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    address = page.resolve().as_uri()
    if as_json:
        show_json(
            {"atlas": str(page), "address": address, "files": len(files), "bytes": size,
             "missing": missing}
        )  # fmt: skip
        return
    for note in missing:
        show_note(note)
    say(f"{len(files)} files, {size / 1e6:.1f} MB. Open {address}")
