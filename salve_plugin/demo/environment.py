"""Machine and versions, without which a number means little."""

import platform
from importlib.metadata import version

import torch


def environment() -> dict[str, str | int]:
    """Return machine, threads and the versions of what the numbers depend on."""
    packages = ("salve-plugin", "torch", "timm", "captum")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in packages},
    }
