"""What the tests of the Hub's side share."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hub_client import LoopbackHub
from huggingface_hub import HfApi
from small_artifacts import altered

from salve_plugin.control.edit import Edit
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.hub import patience
from salve_plugin.store.hub.push import Pushed


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, client_waits: list[float]) -> list[float]:
    """The seconds for which we wanted to wait before we repeated requests; none passes."""
    waits: list[float] = []
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """The Hub client as alice."""
    return HfApi(endpoint=hub.url, token="hf_alice")


@pytest.fixture
def push(hub: LoopbackHub, repo_id: str) -> Callable[..., Pushed]:
    """Push an artifact to the test's repository as alice."""

    def push_to_hub(artifact: EditArtifact, **options: Any) -> Pushed:
        return artifact.push_to_hub(
            repo_id, **{"token": "hf_alice", "endpoint": hub.url, **options}
        )

    return push_to_hub


@pytest.fixture
def pull(hub: LoopbackHub, repo_id: str) -> Callable[..., EditArtifact]:
    """Pull an artifact from the test's repository, as nobody unless told otherwise."""

    def from_pretrained(**options: Any) -> EditArtifact:
        return EditArtifact.from_pretrained(repo_id, **{"endpoint": hub.url, **options})

    return from_pretrained


@pytest.fixture
def other(tiny: EditArtifact, tiny_edit: Edit) -> EditArtifact:
    """Another edit of the same base, without pictures."""
    return replace(tiny, edit=altered(tiny_edit, strength=0.25), assessment=None, pictures=None)
