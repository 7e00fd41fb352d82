"""The card of a latent: the images, maps and numbers that it shows, and that names stay text."""

import re
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from PIL import Image
from small_study import Small

import salve_plugin as salve
from salve_plugin.errors import InputError
from salve_plugin.faces.table import shown
from salve_plugin.validate.crops import pointed_at


@pytest.fixture(scope="module")
def evidence(small: Small) -> salve.LatentEvidence:
    return salve.evidence(small.hooked, small.dictionary, small.acts, permutations=20)


def test_a_card_shows_what_a_latent_is_strongest_on(
    small: Small, evidence: salve.LatentEvidence
) -> None:
    latent = int(evidence.auc.argmax())
    card = salve.latent_card(
        small.hooked, small.dictionary, small.acts, latent, images=small.images, top=4
    )
    codes = small.dictionary.encode(small.acts.tensor())[:, latent]
    assert torch.equal(card.images, codes.argsort(descending=True, stable=True)[:4])
    torch.testing.assert_close(card.codes, codes[card.images])
    fam = salve.LayerGradFam.of(small.hooked, small.dictionary)
    inputs = torch.stack([small.images[image][0] for image in card.images.tolist()])
    assert card.maps is not None
    torch.testing.assert_close(card.maps, fam.attribute(inputs, target=latent)[:, 0])
    html = card._repr_html_()
    # The image, its map, and a crop where the map points at something.
    assert [len(each) for each in card.pictures] == [
        3 if bool((heat > 0).any()) else 2 for heat in card.maps
    ]
    assert html.count("<img") == sum(map(len, card.pictures))
    for pictures, heat, image in zip(card.pictures, card.maps, inputs, strict=True):
        box = pointed_at(heat, (image.shape[1], image.shape[2]))
        if box is not None:
            size = Image.open(BytesIO(pictures[2])).size
            assert size == (box.right - box.left, box.bottom - box.top)
    assert f"Latent {latent}" in html
    assert "script" not in html.lower()
    assert card.captions[0].split(", ")[0] in repr(card)


def test_a_card_shows_the_evidence_beside_chance(
    small: Small, evidence: salve.LatentEvidence
) -> None:
    latent = int(evidence.auc.argmax())
    card = salve.latent_card(
        small.hooked, small.dictionary, small.acts, latent, images=small.images, evidence=evidence
    )
    assert torch.equal(card.images, evidence.top_images[latent, :6])
    for cell in evidence.as_table([latent]).rows[0]:
        assert shown(cell) in str(card)
    assert f"({float(evidence.auc_null[latent]):.3f})" in card._repr_html_()


def test_names_of_classes_and_files_are_text(small: Small, evidence: salve.LatentEvidence) -> None:
    # A class that is called like a piece of a page is among those of the study.
    hostile = next(
        latent
        for latent in range(small.dictionary.n_latents)
        if "<" in "".join(
            salve.latent_card(
                small.hooked, small.dictionary, small.acts, latent, images=small.images,
                evidence=evidence,
            ).captions
        )
    )  # fmt: skip
    html = salve.latent_card(
        small.hooked, small.dictionary, small.acts, hostile, images=small.images, evidence=evidence
    )._repr_html_()
    assert "&lt;" in html
    known = r"</?(b|div|figure|figcaption|img|table|thead|tbody|tr|td|th|caption)\b[^<>]*>"
    assert not re.search("[<>]", re.sub(known, "", html))


def test_what_is_of_something_else_is_refused(small: Small, evidence: salve.LatentEvidence) -> None:
    parts = (small.hooked, small.dictionary, small.acts)
    with pytest.raises(InputError, match="no latent 99; the latents are 0 to"):
        salve.latent_card(*parts, 99, images=small.images)
    other = replace(evidence, n_images=10)
    with pytest.raises(InputError, match="evidence is of 10 images, the recording has 300"):
        salve.latent_card(*parts, 0, images=small.images, evidence=other)
