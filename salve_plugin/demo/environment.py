"""Machine and versions, without which a number means little."""

import platform
from importlib.metadata import version

import torch


def environment(threads: int | None = None) -> dict[str, str | int]:
    """Return machine, threads (this process's by default) and versions."""
    packages = ("salve-plugin", "torch", "timm", "captum")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": threads or torch.get_num_threads(),
        **{package: version(package) for package in packages},
    }
