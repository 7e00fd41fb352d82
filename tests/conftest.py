"""Trained networks, real images and a Hub on loopback that most tests share."""

import os
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import annotation_checks  # noqa: F401 # before what it decorates is imported
import pytest
import torch
from hub_client import LoopbackHub
from jaxtyping import config
from torch import nn

from salve_plugin.demo import digits

collect_ignore = ["hub_server", "tools"]  # imported by tests, not tests themselves

FIXTURES = Path(__file__).parent / "fixtures"

torch.set_num_threads(1)


@pytest.fixture
def untyped() -> Iterator[None]:
    """No annotation is checked at run time, as in a program of one's own."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def _splits() -> tuple[digits.Split, digits.Split]:
    return digits.load_digits()


@pytest.fixture(scope="session")
def digits_train(_splits: tuple[digits.Split, digits.Split]) -> digits.Split:
    """The 1437 digits that the networks were trained on."""
    return _splits[0]


@pytest.fixture(scope="session")
def digits_test(_splits: tuple[digits.Split, digits.Split]) -> digits.Split:
    """The 360 digits that they never saw."""
    return _splits[1]


@pytest.fixture
def digits_resnet() -> nn.Module:
    """A fresh copy of a timm ResNet trained on digits: 32x32x1 -> 128 features -> 10 classes."""
    return digits.load("resnet", FIXTURES / "digits_resnet.safetensors")


@pytest.fixture
def digits_vit() -> nn.Module:
    """A fresh copy of a timm VisionTransformer (CLS pooling) trained on digits, 64 features."""
    return digits.load("vit", FIXTURES / "digits_vit.safetensors")


@pytest.fixture(params=["resnet", "vit"])
def digits_network(request: pytest.FixtureRequest) -> nn.Module:
    """Each of the two trained networks in turn."""
    return digits.load(request.param, FIXTURES / f"digits_{request.param}.safetensors")


@pytest.fixture(scope="session")
def peer_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make an environment for a program that we did not write; returns its Python.

    It is made once in the folder named by SALVE_PEER_ENVIRONMENTS, if that is set, and else anew.
    """
    cache = os.environ.get("SALVE_PEER_ENVIRONMENTS")

    def run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command[:4]}: {done.stderr[-3000:]}"

    def made(name: str, *packages: str, shared: bool = False) -> Path:
        """Install packages; with `shared`, what our environment has (torch) is used, not loaded."""
        folder = (Path(cache) if cache else tmp_path_factory.mktemp("peers")) / name
        python, ready = folder / "bin" / "python", folder / "ready"
        if not ready.exists():
            run(sys.executable, "-m", "venv", "--clear", str(folder))
            if shared:
                version = f"python{sys.version_info.major}.{sys.version_info.minor}"
                path = folder / "lib" / version / "site-packages" / "shared.pth"
                path.write_text(sysconfig.get_paths()["purelib"] + "\n")
            run(str(python), "-m", "pip", "install", "--quiet", *packages)
            ready.touch()
        return python

    return made


@pytest.fixture
def hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home of the Hugging Face client: no file or token of the user is touched.

    The client reads its environment when it is imported, so its constants are set, too. `hf_xet`
    reads the environment when the client begins a session with it, so there is a new one a test.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import _xet

    home = tmp_path / "hf_home"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    places = {"HF_HUB_CACHE": "hub", "HF_XET_CACHE": "xet", "HF_TOKEN_PATH": "token"}
    for name, place in {**places, "HF_ASSETS_CACHE": "assets"}.items():
        monkeypatch.setattr(constants, name, str(home / place))
        monkeypatch.setenv(name, str(home / place))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setenv("HF_HOME", str(home))
    # Telemetry asks huggingface.co which program runs the client.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    monkeypatch.setattr(_xet, "XET_CONNECTION_INFO_CACHE", {})
    yield home
    huggingface_hub.close_session()


@pytest.fixture
def client_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which the client wanted to wait before it repeated requests; none passes."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, time=time.time)
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    return waits


HUB_OPTIONS = ("--page", "10", "--multipart", "5000000", "--part", "2500000")
HUB_MODES = {"xet": HUB_OPTIONS, "plain": (*HUB_OPTIONS, "--no-xet")}


@pytest.fixture(scope="session")
def _hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LoopbackHub]]:
    started: dict[str, LoopbackHub] = {}

    def hub_of(mode: str) -> LoopbackHub:
        if mode not in started:
            root = tmp_path_factory.mktemp("hub") / mode
            started[mode] = LoopbackHub.start(root, *HUB_MODES[mode])
        return started[mode]

    yield hub_of
    for hub in started.values():
        hub.kill()
        assert hub.errors() == ""


def _switch_xet(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch Xet on or off in the client, also in programs that the test starts."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not on)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", str(int(not on)))


@pytest.fixture(params=list(HUB_MODES))
def hub(
    request: pytest.FixtureRequest,
    hf_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    _hubs: Callable[[str], LoopbackHub],
) -> LoopbackHub:
    """A Hub that all tests share, with Xet and without; `hub.xet` says which.

    `@pytest.mark.parametrize("hub", ["plain"], indirect=True)` takes just one of them.

    Repositories stay, so each test takes names of its own (`repo_id`); faults and the log do not.
    """
    hub = _hubs(request.param)
    hub.clear()
    _switch_xet(hub.xet, monkeypatch)
    return hub


@pytest.fixture(params=list(HUB_MODES))
def hub_process(
    request: pytest.FixtureRequest,
    hf_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[LoopbackHub]:
    """A Hub of the test's own, to kill and restart."""
    hub = LoopbackHub.start(tmp_path / "hub", *HUB_MODES[request.param])
    _switch_xet(hub.xet, monkeypatch)
    yield hub
    hub.kill()
    assert hub.errors() == ""


@pytest.fixture
def default_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The same Hub as the one that the client asks by default, also in programs.

    That is `HF_ENDPOINT`, which the client reads when it is imported.
    """
    from huggingface_hub import constants, hf_api

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    return hub


@pytest.fixture
def repo_id() -> str:
    """A name for a repository of alice that no other test has."""
    return f"alice/{uuid.uuid4().hex}"
