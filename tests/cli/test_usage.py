"""Command lines that cannot be meant are refused, as JSON where that was asked for."""

import json
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
from command import run

from salve_plugin.cli import main
from salve_plugin.cli.output import plain_warnings

Capture = pytest.CaptureFixture[str]


def test_the_version_is_told(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"salve {version('salve-plugin')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("features",), "Missing argument"),
        (("features", "study", "--tops", 3), "No such option: --tops"),
        (("features", "study", "--top", "many"), "Invalid value"),
        (("explode",), "No such command"),
        (("discover", "--model", "a", "--data", "b", "--out", "c", "--latents", 0), "--latents"),
        (("discover", "--model", "a", "--data", "b", "--out", "c", "--num-classes", -1), "classes"),
        (("edit", "study", "--out", "e", "--max-harm", 2), "--max-harm"),
    ],
)
def test_usage_errors_are_json_where_json_was_asked_for(
    arguments: tuple[object, ...], message: str, capsys: Capture
) -> None:
    status, told = run(capsys, *arguments)
    assert (status, told["error"]) == (2, "UsageError")
    assert message in told["message"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("features", "study", "--class", "a", "--class", "b"),
        ("alpha-crit", "study", "--class", "a", "--latent", 1, "--latent", 1),
        ("apply", "edit", "--out", "a.safetensors", "--out", "b.safetensors"),
    ],
)
def test_an_option_given_twice_is_refused(arguments: tuple[object, ...], capsys: Capture) -> None:
    status, told = run(capsys, *arguments)
    assert (status, told["error"]) == (2, "UsageError")
    assert "is given 2 times and takes one value" in told["message"]
    with pytest.raises(SystemExit) as exit_info:
        main([str(each) for each in arguments])
    assert exit_info.value.code == 2
    assert "2 times" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--pretrained", "--seeds", 3), "--seeds takes no effect here"),
        (("demo", "--pretrained", "--model", "a", "--data", "b"), "--model takes no effect here"),
        (("demo", "--model", "a", "--data", "b", "--seeds", 3), "--seeds takes no effect here"),
        (("alpha-crit", "study", "--fraction", 0.3), "--fraction takes no effect here"),
        (("edit", "study", "--out", "e", "--max-harm", 0.1), "--max-harm takes no effect here"),
        (("edit", "study", "--out", "e", "--skip-unreadable"), "--skip-unreadable takes no effect"),
        (
            ("edit", "s", "--out", "e", "--remove", "a", "--without", "b", "--pictures", 1),
            "--pictures takes no effect here",
        ),
        (("apply", "a", "--out", "b.safetensors", "--skip-unreadable"), "images of --data"),
    ],
)
def test_an_option_is_refused_where_it_would_be_passed_over(
    arguments: tuple[object, ...], message: str, capsys: Capture
) -> None:
    status, told = run(capsys, *arguments)
    assert (status, told["error"]) == (1, "InputError")
    assert message in told["message"]


def test_arguments_of_several_values_and_flags_may_be_repeated(
    tmp_path: Path, capsys: Capture
) -> None:
    status, told = run(capsys, "explain", tmp_path, "a.png", "a.png", "--out", tmp_path, "--json")
    assert (status, told["error"]) == (1, "ReadError")  # that it is no study
    with pytest.raises(SystemExit):
        main(["learners", "--json", "--json"])
    assert json.loads(capsys.readouterr().out)["learners"]


def test_warnings_are_a_sentence_without_the_code_that_they_are_from() -> None:
    warning = UserWarning("half of it \x1b[31mis missing")
    with plain_warnings():
        shown = warnings.formatwarning(warning, UserWarning, "code.py", 1)
    assert shown == "Note: half of it \\x1b[31mis missing\n"
    assert "code.py" in warnings.formatwarning(warning, UserWarning, "code.py", 1)
