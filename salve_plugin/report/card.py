"""One latent to look at in a notebook: the images that it is strongest on, and its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from salve_plugin.control.networks import Networks
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.reads import check_read
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError, printable
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.integers import whole
from salve_plugin.report.evidence import check
from salve_plugin.report.gallery import Images, maps
from salve_plugin.report.scripts import data_url
from salve_plugin.validate.activity import Activity, activity
from salve_plugin.validate.crops import pointed_at
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence
from salve_plugin.validate.pictures import overlay, png_bytes, stretched

SIDE = 148
"""Pixels of a picture on the card."""


@dataclass(frozen=True, eq=False, repr=False)
class LatentCard(Tabular):
    """A latent as notebooks show it: what drives it most, and its numbers.

    Attributes:
        latent: which.
        images: of the recording, those that it is strongest on, best first, (top,).
        codes: of these, (top,).
        maps: Grad-FAM on each, (top, h, w); None where the model has none. Of a latent whose
            largest code is negative, what lowers it is positive.
        numbers: density and largest code, or the latent's evidence beside chance.
        captions: what is written under each image.
        pictures: each image as PNG, the same in grey with its map in colour over it, and the part
            that the map points at, which is left out where it points at nothing.
    """

    latent: int
    images: Int64[Tensor, " top"]
    codes: Float[Tensor, " top"]
    maps: Float[Tensor, "top h w"] | None
    numbers: Table
    captions: Sequence[str]
    pictures: Sequence[tuple[bytes, ...]]

    def __repr__(self) -> str:
        """Say in one line what the latent is strongest on."""
        shown = ", ".join(
            f"{name} ({code:.3g})"
            for name, code in zip(self.captions, self.codes.tolist(), strict=True)
        )
        return f"<LatentCard of latent {self.latent}: {shown:.200}>"

    def as_table(self) -> Table:
        """Return the numbers without the pictures."""
        return self.numbers

    def _repr_html_(self) -> str:
        """Return pictures, captions and numbers as HTML, which notebooks show."""
        figures = "".join(
            f'<figure style="margin:0 .8em .8em 0;width:{SIDE}px">'
            + "".join(
                f'<img src="{data_url(png)}" width="{SIDE}" alt="{_html(caption)}{what}">'
                for png, what in zip(pngs, ("", ", its map", ", its crop"), strict=False)
            )
            + f'<figcaption style="overflow-wrap:anywhere"><b>{code:.3g}</b> {_html(caption)}'
            "</figcaption></figure>"
            for caption, code, pngs in zip(
                self.captions, self.codes.tolist(), self.pictures, strict=True
            )
        )
        said = "" if self.maps is None else (
            "<div>Below each image its Grad-FAM map, yellow where it drives the latent most, all "
            "on one scale, and what it points at</div>"
        )  # fmt: skip
        return (
            f'<div><b>Latent {self.latent}</b><div style="display:flex;flex-wrap:wrap">{figures}'
            f"</div>{said}{self.numbers.html()}</div>"
        )


def latent_card(
    hooked: HookedModel,
    dictionary: Dictionary,
    acts: Activations,
    latent: int,
    *,
    images: Any,
    evidence: LatentEvidence | None = None,
    top: int = 6,
) -> LatentCard:
    """Return the images that a latent is strongest on, with maps and numbers, for a notebook.

    Args:
        hooked: the attached model, without edits.
        dictionary: of it.
        acts: recording of the dictionary's site.
        latent: which.
        images: data set that was recorded, as for `atlas`; only the top images are read.
        evidence: of the same recording: the card shows what speaks for the latent, and takes the
            top images from there, as many as it names, so that the recording is not read again.
        top: how many images.

    Raises:
        BaseMismatchError: if model, dictionary and recording are not of one network.
        InputError: if there is no such latent, `top` is not positive, or images or evidence are not
            of the recording.
    """
    check_attached(hooked)
    check_read(dictionary, acts)
    latent, top = whole(latent, "latent", least=0), whole(top, "top", least=1)
    if latent >= dictionary.n_latents:
        raise InputError(
            f"there is no latent {latent}; the latents are 0 to {dictionary.n_latents - 1}"
        )
    Networks(hooked).check_present("the recording", acts.network_sha256)
    recorded = Images.of(hooked, acts, images)
    active = activity(dictionary, acts, top) if evidence is None else _activity(
        evidence, dictionary, acts
    )  # fmt: skip
    # Evidence may name more images than are asked for here.
    best = active.top_images[:, :top]
    shown = maps(hooked, dictionary, recorded, best, [latent]).grids.get(latent)
    heats = None if shown is None else shown * float(active.signs[latent])
    # Of what drives the latent alone: a strong negative part would leave the positive one pale.
    limit = 0.0 if heats is None else float(heats.clamp(min=0).max())
    pictures = []
    for place, image in enumerate(best[latent].tolist()):
        pixels = recorded.read(image)
        pngs = [png_bytes(stretched(pixels))]
        if heats is not None:
            over = overlay(pixels, heats[place], size=_size(pixels), signed=False, limit=limit)
            pngs.append(png_bytes(over, colours=256))
            height, width = pixels.shape[-2:]
            box = pointed_at(heats[place], (height, width))
            if box is not None:
                pngs.append(png_bytes(stretched(box.of(pixels))))
        pictures.append(tuple(pngs))
    captions = [_caption(acts, recorded, image) for image in best[latent].tolist()]
    return LatentCard(
        latent, best[latent], active.top_codes[latent, :top], heats,
        _numbers(active, latent) if evidence is None else evidence.as_table([latent]),
        captions, pictures,
    )  # fmt: skip


def _activity(evidence: LatentEvidence, dictionary: Dictionary, acts: Activations) -> Activity:
    check(evidence, dictionary, acts.n_classes)
    if evidence.n_images != acts.n_images:
        raise InputError(
            f"the evidence is of {evidence.n_images} images, the recording has {acts.n_images}: "
            "pass the recording that it was measured on"
        )
    return evidence.activity


def _numbers(active: Activity, latent: int) -> Table:
    least, most = float(active.least[latent]), float(active.most[latent])
    return Table(
        "", ("latent", "density", "smallest code", "largest code"),
        [(latent, float(active.density[latent]), least, most)],
        ("evidence=salve.evidence(...) shows what speaks for it, beside chance",),
    )  # fmt: skip


def _caption(acts: Activations, recorded: Images, image: int) -> str:
    label = int(recorded.recorded.labels[image])
    name = str(label) if acts.classes is None else acts.classes[label]
    file = f"image {image}" if recorded.files is None else recorded.files[image]
    return f"{name}, {file}"


def _size(pixels: Tensor) -> tuple[int, int]:
    """Return height and width of a picture of the card's width."""
    height, width = pixels.shape[-2:]
    return max(1, round(SIDE * height / width)), SIDE


def _html(text: str) -> str:
    return escape(printable(text), quote=True)
