"""The public names exist, load lazily, and importing the package stays cheap."""

import subprocess
import sys

import pytest

import salve_plugin


@pytest.mark.parametrize("name", salve_plugin.__all__)
def test_every_public_name_can_be_used(name: str) -> None:
    assert getattr(salve_plugin, name).__module__.startswith("salve_plugin.")
    assert name in dir(salve_plugin)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'supress'"):
        salve_plugin.supress  # noqa: B018 - the access is the test


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert salve_plugin.__version__ == version("salve-plugin")


def test_importing_the_package_loads_no_heavy_dependency() -> None:
    code = (
        "import sys, salve_plugin, salve_plugin.errors; "
        "print(sorted({'timm', 'captum', 'transformer_lens', 'huggingface_hub', 'matplotlib', "
        "'torchvision', 'rich', 'typer', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"
