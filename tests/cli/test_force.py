"""Commands given again are fine; what somebody else made is not overwritten without --force."""

from pathlib import Path

import pytest
from command import run

Capture = pytest.CaptureFixture[str]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_other_contents_need_force_and_the_same_do_not(
    image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    study, edit, weights = (tmp_path / name for name in ("study", "edit", "w.safetensors"))
    model = ["--model", "test_resnet", "--checkpoint", checkpoint, "--num-classes", 10]
    discover = ["discover", *model, "--data", image_folder, "--out", study, "--latents", 16]
    make = ["edit", study, "--class", "3", "--pictures", 0, "--out", edit, "--strength"]
    apply = ["apply", edit, *model, "--out", weights]
    explain = ["explain", study, next((image_folder / "3").iterdir()), "--out", tmp_path / "e"]
    steps = (discover, [*make, 1], apply, [*explain, "--latent", 1])
    for command in steps:
        assert run(capsys, *command)[0] == 0
    before = tree(tmp_path)
    for command in steps:  # once more
        assert run(capsys, *command)[0] == 0
    assert tree(tmp_path) == before

    others = {
        "other seed": [*discover, "--seed", 1],
        "other learner": [*discover, "--learner", "topk"],
        "other site": [*discover, "--site", "blocks.3.hook_resid_post"],
        "another artifact": [*make, 2],
        "a dictionary": ["edit", study, "--latent", 1, "--strength", 1, "--pictures", 0,
                         "--out", study / "dictionary"],
        "in the images": ["edit", study, "--latent", 1, "--strength", 1, "--pictures", 0,
                          "--out", image_folder / "3" / "edit"],
        "study in the images": [*discover[:-4], "--out", image_folder, "--latents", 16],
    }  # fmt: skip
    for name, command in others.items():
        status, said = run(capsys, *command)
        assert (status, said["error"]) == (1, "InputError"), name
        assert "--force" in said["message"] or "inside the image folder" in said["message"], name
        assert tree(tmp_path) == before, name
    assert not (image_folder / "3" / "edit").exists()

    for command in ([*discover, "--seed", 1], [*make, 2]):
        assert run(capsys, *command, "--force")[0] == 0
    status, said = run(capsys, *apply)
    assert status == 1
    assert f"{weights} holds another file" in said["message"]
    assert run(capsys, *apply, "--force")[0] == 0
    assert all(before[name] != now for name, now in tree(tmp_path).items() if name.startswith("w"))
