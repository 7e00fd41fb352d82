"""The atlas in a real browser, from disk, with the network off."""

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from atlas_browser import SOURCES, needs_browser
from small_study import NAMES, Small

import salve_plugin as salve
from salve_plugin.control.erasers import fold_latents
from salve_plugin.report.artifact_page import artifact_page
from salve_plugin.validate.crops import Box, pointed_at

pytestmark = [
    pytest.mark.slow,
    needs_browser,
]
STUDY = "my study's"
EDITS: list[dict[str, Any]] = [
    {"latents": [3], "rows": [3], "label": 3, "operator": "suppress", "strength": 6.5},
    {"latents": [3, 7], "rows": [3, 8], "label": 3, "operator": "suppress", "strength": 30.25},
    {"latents": [5], "rows": None, "label": 1, "operator": "suppress", "strength": 60.0},
    {"latents": [5], "rows": [5, 9], "label": 5, "operator": "enhance", "strength": 25.0},
    {"latents": [0], "rows": [4], "label": 4, "operator": "mask", "strength": None},
    {"latents": [3], "rows": [3], "label": 3, "operator": "fold", "strength": 20.5},
    {"latents": [5, 3], "rows": None, "label": 1, "operator": "fold", "strength": 5.5},
    {"latents": [0], "rows": None, "label": 0, "operator": "fold", "strength": 1.0},
]


@pytest.fixture(scope="module")
def folder(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("atlas") / "a folder #1 100% <b>"
    quality = salve.quality(
        small.dictionary, small.acts, hooked=small.hooked, controls=("random", "pca")
    )
    salve.atlas(
        small.hooked, small.dictionary, small.acts, place, images=small.images, quality=quality,
        mapped=12, maximized=1, title="<script>alert(3)</script>", study=STUDY,
        evidence=salve.evidence(small.hooked, small.dictionary, small.acts, permutations=40),
        trials=salve.sweep(small.acts, "itda", {"n_latents": [8, 32]}),
    )  # fmt: skip
    return place


@pytest.fixture(scope="module", params=["light", "dark"])
def walk(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: Any) -> dict[str, Any]:
    downloads = tmp_path_factory.mktemp("downloads")
    edits = [{**edit, "download": True} for edit in EDITS]
    done = subprocess.run(
        ["node", str(SOURCES / "browser" / "walk.mjs"), str(folder), str(downloads)],
        input=json.dumps({"edits": edits, "scheme": request.param}),
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def made(small: Small, edit: dict[str, Any], strength: float | None = None) -> salve.Edit:
    if edit["operator"] == "mask":
        return salve.mask(small.hooked, edit["rows"], small.acts)
    if edit["operator"] == "fold":
        acts = (batch.x for batch in small.acts.batches(64))
        fold = fold_latents(small.dictionary, edit["latents"], acts, shrinkage=None).map
        operator = replace(fold, scale=1 - edit["strength"])
        return salve.edit_at(small.hooked, small.dictionary.site, operator, rows=edit["rows"])
    make = salve.suppress if edit["operator"] == "suppress" else salve.enhance
    latents = edit["latents"] if len(edit["latents"]) > 1 else edit["latents"][0]
    return make(
        small.hooked, small.dictionary, latent=latents, rows=edit["rows"],
        strength=float(edit["strength"] if strength is None else strength),
    )  # fmt: skip


def evaluated(small: Small, edit: salve.Edit) -> salve.Evaluation:
    images = [(small.images.images, small.images.labels)]
    return salve.evaluate(edit.edited(small.hooked.model), images)


def check_accuracies(found: dict[str, Any], after: salve.Evaluation) -> None:
    assert found["overall"] == pytest.approx(after.overall, abs=1e-3)
    assert len(found["classes"]) == 10
    for label, accuracy in found["classes"].items():
        assert accuracy == pytest.approx(float(after.accuracy[int(label)]), abs=1e-3)


def test_nothing_is_said_on_the_console_and_nothing_is_asked_for_elsewhere(
    walk: dict[str, Any], folder: Path
) -> None:
    assert walk["faults"] == []
    assert len(walk["requests"]) > 10
    assert all(address.startswith(folder.as_uri()) for address in walk["requests"])


def test_accuracies_are_those_of_the_edited_model(walk: dict[str, Any], small: Small) -> None:
    before = evaluated(small, made(small, EDITS[0], 0.0))
    for asked, found in zip(EDITS, walk["edits"], strict=True):
        after = evaluated(small, made(small, asked))
        assert not torch.equal(after.confusion, before.confusion), (
            asked
        )  # there is something to see
        check_accuracies(found, after)


def test_dragging_shows_what_each_strength_does(walk: dict[str, Any], small: Small) -> None:
    strengths = [found["alpha"] for found in (*walk["dragged"], walk["keyed"])]
    assert strengths == sorted(set(strengths))
    for found in (*walk["dragged"], walk["keyed"]):
        check_accuracies(found, evaluated(small, made(small, EDITS[0], found["alpha"])))
    assert [found["alpha"] for found in walk["kept"]] == [walk["keyed"]["alpha"]] * 2


def test_a_crop_is_what_the_map_points_at(walk: dict[str, Any], small: Small) -> None:
    latent = EDITS[0]["latents"][0]
    card = salve.latent_card(
        small.hooked, small.dictionary, small.acts, latent, images=small.images, top=12
    )
    assert card.maps is not None
    assert len(walk["crops"]) == 12
    for found, heat in zip(walk["crops"], card.maps, strict=True):
        box = pointed_at(heat, (8, 8)) or Box(0, 0, 8, 8)
        whole = (box.left, box.top, box.right - box.left, box.bottom - box.top)
        assert [8 * share for share in found] == pytest.approx(whole, abs=0.1)


def test_the_python_and_the_recipe_make_the_very_edit(walk: dict[str, Any], small: Small) -> None:
    for asked, found in zip(EDITS, walk["edits"], strict=True):
        expected = made(small, asked)
        given = ("import", "hooked =", "dictionary =", "acts =", "edit.")
        lines = [line for line in found["texts"][0].splitlines() if not line.startswith(given)]
        names = {"hooked": small.hooked, "dictionary": small.dictionary, "acts": small.acts}
        scope: dict[str, Any] = {"salve": salve, "torch": torch, **names}
        exec("\n".join(lines), scope)
        edit = salve.Edit.from_recipe(found["file"])
        if asked["operator"] != "fold":
            assert scope["edit"] == edit == expected
            continue
        # What reads several latents at once is rounded otherwise than what reads each.
        assert edit.to_json() == scope["edit"].to_json()
        for name, tensor in expected.tensors.items():
            torch.testing.assert_close(edit.tensors[name], tensor)
            torch.testing.assert_close(scope["edit"].tensors[name], tensor)


def test_rows_that_no_edit_can_have_are_the_class_s_own(walk: dict[str, Any]) -> None:
    assert "rows=[4]" in walk["unknown"]
    assert "salve.mask(hooked, 4, acts)" in walk["masked"]


def test_the_command_is_one_that_a_shell_takes_apart_rightly(walk: dict[str, Any]) -> None:
    words = shlex.split(walk["edits"][0]["texts"][1])
    assert words == [
        "salve", "edit", STUDY, f"--class={NAMES[3]}", "--latent", "3", "--rows", "3",
        "--strength", "6.5", "--out", "latent-3-edit",
    ]  # fmt: skip


def test_other_edits_are_made_from_the_file_that_was_downloaded(walk: dict[str, Any]) -> None:
    for asked, found in zip(EDITS[4:], walk["edits"][4:], strict=True):
        file = Path(found["file"])
        assert shlex.split(found["texts"][1]) == [
            "salve", "edit", STUDY, f"--class={NAMES[asked['label']]}", "--recipe", file.name,
            "--out", file.stem,
        ]  # fmt: skip


def test_names_are_text(walk: dict[str, Any]) -> None:
    assert walk["names"] == list(NAMES)
    assert all(script.startswith('<script src="atlas.js"') for script in walk["scripts"])
    assert walk["searched"] == 2


def test_keys_alone_lead_everywhere(walk: dict[str, Any]) -> None:
    assert all(focus["visible"] for focus in walk["focus"]), walk["focus"]
    words = [focus["words"] for focus in walk["focus"]]
    assert words[0] == "Skip to the content"
    assert {"Overview", "Classes", "Latents", "Edit bench"} <= set(words)
    assert walk["focus"][-1]["place"] == "0"
    assert walk["arrived"] == {"hash": "#/class/5", "title": NAMES[5], "focused": "H1"}
    assert walk["next"] == "A"


def test_axe_finds_nothing_serious(walk: dict[str, Any]) -> None:
    assert len(walk["axe"]) == 6
    for page, violations in walk["axe"].items():
        serious = [each for each in violations if each["impact"] in ("serious", "critical")]
        assert not serious, (page, serious)


def test_prints_leave_the_navigation_out_and_no_row(walk: dict[str, Any], small: Small) -> None:
    assert walk["printed"] == "none"
    assert walk["onPaper"] == small.dictionary.n_latents > walk["onScreen"]


def test_the_page_of_an_artifact_opens_alone(small: Small, tmp_path: Path) -> None:
    edit = made(small, EDITS[0])
    artifact = salve.EditArtifact.of(
        small.hooked, edit, dictionary=small.dictionary, labels=NAMES,
        alpha_crit=salve.alpha_crit(small.hooked, edit, small.acts, target="flip"),
        assessment=salve.assess(
            small.hooked, edit, small.acts, target=3, dictionary=small.dictionary
        ),
        pictures=salve.grad_fam_pictures(
            small.hooked, small.dictionary, edit, small.images.images[:2]
        ),
    )  # fmt: skip
    page = artifact_page(artifact, tmp_path / "atlas")
    done = subprocess.run(
        ["node", str(SOURCES / "browser" / "look.mjs"), str(page.parent)],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["faults"] == []
    assert not [each for each in seen["axe"] if each["impact"] in ("serious", "critical")]
    assert NAMES[5] in seen["text"]
    assert artifact.assessment is not None
    assert artifact.assessment.verdict in seen["text"].replace("\n", " ")
