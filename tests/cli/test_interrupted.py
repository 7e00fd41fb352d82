"""Ctrl-C: what is done is kept, one line says how to go on, and the command given again does."""

from pathlib import Path

import pytest

from salve_plugin.cli import images, main


def test_an_interrupted_discover_says_what_is_kept_and_goes_on(
    image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    study = tmp_path / "study"
    command = [
        "discover", "--model", "test_resnet", "--checkpoint", str(checkpoint),
        "--num-classes", "10", "--data", str(image_folder), "--out", str(study),
        "--latents", "16", "--batch-size", "32",
    ]  # fmt: skip
    opened: list[Path] = []
    real = images.open_image

    def until(path: Path) -> object:
        opened.append(path)
        if len(opened) == 70:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(images, "open_image", until)
    with pytest.raises(SystemExit) as exit_info:
        main(command)
    assert exit_info.value.code != 0
    said = [line for line in capsys.readouterr().err.splitlines() if "Interrupted" in line]
    assert said == ["Interrupted; 64 images are recorded in "
                    f"{study / 'activations'}. Repeat the command to go on."]  # fmt: skip
    with pytest.raises(SystemExit) as exit_info:
        main(command)
    assert exit_info.value.code in (0, None)
    assert sorted(path.name for path in study.iterdir()) == [
        "activations", "dictionary", "study.json"
    ]  # fmt: skip
    assert not list((study / "activations").glob("*partial*"))
