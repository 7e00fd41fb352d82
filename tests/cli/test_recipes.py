"""`salve edit --recipe`: whatever the edit bench holds becomes an artifact, assessed."""

from pathlib import Path
from typing import Any

import pytest
from command import run
from recipes import recipe

import salve_plugin as salve
from salve_plugin.cli import main
from salve_plugin.cli.choosing import Evidence
from salve_plugin.cli.study import Study

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def evidence(study: Path) -> Evidence:
    return Evidence.of(Study.load(study))


def edits(evidence: Evidence) -> dict[str, salve.Edit]:
    """Return what the bench can hold and the other options cannot make."""
    hooked, dictionary, acts = evidence.opened.hooked, evidence.dictionary, evidence.acts
    fold = salve.erase(hooked, salve.latent_concept(dictionary, acts, 2), "fold").operator
    origin = salve.Provenance("latents", (2,), dictionary.digest)
    return {
        "two latents": salve.suppress(hooked, dictionary, latent=[2, 5], strength=3.0, rows=[3]),
        "enhance": salve.enhance(hooked, dictionary, latent=[2, 5], strength=3.0, rows=[3]),
        "fold": salve.edit_at(hooked, dictionary.site, fold, rows=[3], provenance=origin),
        "mask": salve.mask(hooked, 3, acts),
    }


@pytest.mark.parametrize("name", ["two latents", "enhance", "fold", "mask"])
def test_a_recipe_becomes_an_assessed_artifact(
    name: str, study: Path, evidence: Evidence, tmp_path: Path, capsys: Capture
) -> None:
    edit = edits(evidence)[name]
    file, out = tmp_path / "recipe.safetensors", tmp_path / "edit"
    file.write_bytes(recipe(edit))
    asked = ("edit", study, "--class", "3", "--recipe", file, "--out", out, "--pictures", 0)
    status, said = run(capsys, *asked)
    assert status == 0
    artifact = salve.EditArtifact.from_pretrained(out)
    assert artifact.edit == edit
    assert artifact.digest == said["sha256"]
    assert artifact.assessment is not None
    assert artifact.assessment.target == (None if name == "enhance" else 3)
    assert (artifact.alpha_crit is None) == (name in ("enhance", "mask"))
    assert (artifact.dictionary_learner is None) == (name == "mask")
    if name == "mask":  # which lacks most of what is printed
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in asked])
        assert not ended.value.code
        assert edit.kind in capsys.readouterr().out


def test_a_recipe_stands_alone_and_fits_the_study(
    study: Path, evidence: Evidence, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "recipe.safetensors"
    file.write_bytes(recipe(edits(evidence)["two latents"]))

    def refused(*options: Any) -> str:
        status, said = run(capsys, "edit", study, "--out", tmp_path / "edit", *options)
        assert status == 1
        return str(said["message"])

    for option in (("--latent", 2), ("--rows", "all"), ("--strength", 1), ("--enhance",)):
        assert f"--recipe holds a whole edit; {option[0]}" in refused("--recipe", file, *option)
    assert "give one or the other" in refused(
        "--recipe", file, "--remove", tmp_path, "--without", tmp_path
    )
    other = salve.fit(evidence.acts, "itda", n_latents=8)
    file.write_bytes(recipe(salve.suppress(evidence.opened.hooked, other, latent=1, strength=1.0)))
    assert other.digest[:12] in refused("--recipe", file)
    file.write_bytes(b"no recipe")
    assert "truncated" in refused("--recipe", file)
