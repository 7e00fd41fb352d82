"""Small artifacts that the tests of sharing have in common."""

from pathlib import Path

import pytest
from edited_models import created
from small_artifacts import (
    Files,
    covered,
    grey_png,
    small_artifact,
    small_bundle,
    small_crit,
    small_edit,
    tree,
)
from torch import nn

from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.share.artifact import EditArtifact


@pytest.fixture
def png() -> bytes:
    """A picture of one grey pixel."""
    return grey_png()


@pytest.fixture
def tiny_edit() -> Edit:
    """An edit of rows 1 and 2 of a 3x4 head."""
    return small_edit()


@pytest.fixture
def tiny_crit() -> AlphaCrit:
    """Four images: two classes, one root, one without, one there already, one more root."""
    return small_crit()


@pytest.fixture
def tiny() -> EditArtifact:
    """An artifact of three kilobytes with every optional part but the dictionary."""
    return small_artifact()


@pytest.fixture
def saved(tiny: EditArtifact, tmp_path: Path) -> Path:
    """The same in a folder."""
    return tiny.save_pretrained(tmp_path / "saved")


@pytest.fixture(scope="session")
def shared_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same in memory, without the card; read-only."""
    return covered(small_artifact().save_pretrained(tmp_path_factory.mktemp("artifact")))


@pytest.fixture
def saved_bundle(tmp_path: Path) -> Path:
    """A bundle of three members in a folder."""
    return small_bundle().save_pretrained(tmp_path / "bundle")


@pytest.fixture(scope="session")
def bundle_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The same in memory; read-only."""
    return tree(small_bundle().save_pretrained(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def small() -> nn.Module:
    """A model of timm's with 300 thousand parameters, untrained."""
    return created("test_vit", num_classes=4, img_size=32)
