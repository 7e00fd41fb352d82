"""Pushing and pulling an artifact, beside the Hub client doing the same with unchecked files.

A real Hub server on loopback (tests/hub_server), once with Xet and once without; the artifact is a
ResNet-18 edit with the pristine rows of all classes (2 MB). For each way of pulling: milliseconds
(median), requests, and the ratio to the client's own `hf_hub_download` of the same files. Run it
with `PYTHONPATH=tests/hub_server python benchmarks/hub.py --threads 1`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hub_client import LoopbackHub
from torch import nn

from salve_plugin import EditArtifact, attach, suppress
from salve_plugin.demo.environment import environment
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create

REPEATS = 15
TOKEN = "hf_alice"
FILES = ("edit_config.json", "edit.safetensors")
Action = Callable[[Path], object]


def resnet_edit() -> EditArtifact:
    """Return an edit of all rows of a random ResNet-18 head, with its pristine rows."""
    import timm

    hooked = attach(timm.create_model("resnet18", pretrained=False).eval())
    site = hooked.site("unembed.hook_in")
    atoms = nn.functional.normalize(torch.randn(8, site.width), dim=1)
    zeros = {"encoder_bias": torch.zeros(8), "decoder_bias": torch.zeros(site.width)}
    tensors = {"atoms": atoms, "encoder_weight": atoms.clone(), **zeros}
    dictionary = Dictionary(tensors, create("l1", {}), site)
    edit = suppress(hooked, dictionary, latent=3, strength=2.0)
    return EditArtifact.of(hooked, edit)


def measured(hub: LoopbackHub, action: Action, caches: list[Path]) -> tuple[float, int]:
    """Return the median seconds of an action over caches, and the requests of the last one."""
    times = []
    for cache in caches:
        hub.clear()
        start = time.perf_counter()
        action(cache)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(hub.log())


def report(hub: LoopbackHub, artifact: EditArtifact, scratch: Path) -> None:
    """Print the lines of one server."""
    from huggingface_hub import HfApi

    api, repo = HfApi(endpoint=hub.url, token=TOKEN), "alice/edit"
    start = time.perf_counter()
    commit = artifact.push_to_hub(repo, token=TOKEN, endpoint=hub.url).reference.commit
    push = time.perf_counter() - start

    def ours(revision: str) -> Action:
        return lambda cache: EditArtifact.from_pretrained(
            repo, endpoint=hub.url, revision=revision, cache_dir=cache
        )

    def theirs(revision: str) -> Action:
        return lambda cache: [
            Path(api.hf_hub_download(repo, name, revision=revision, cache_dir=cache)).read_bytes()
            for name in FILES
        ]

    mode = "Xet" if hub.xet else "plain"
    print(f"{mode}: first push {push * 1e3:.0f} ms")
    warm = [scratch / mode / "warm"] * REPEATS
    cold = {who: [scratch / mode / f"{who}{number}" for number in range(REPEATS)]
            for who in ("ours", "theirs")}  # fmt: skip
    ours("main")(warm[0])
    for what, revision, us, them in (
        ("cold, by branch", "main", cold["ours"], cold["theirs"]),
        ("warm, by branch", "main", warm, warm),
        ("warm, pinned", commit, warm, warm),
    ):
        mine, requests = measured(hub, ours(revision), us)
        peer, asked = measured(hub, theirs(revision), them)
        print(
            f"{mode + ': ' + what:24}{mine * 1e3:9.1f}{requests:6}{peer * 1e3:12.1f}{asked:6}"
            f"{mine / peer:8.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    print(environment(threads))
    print(f"{'':24}{'ours, ms':>9}{'req.':>6}{'client, ms':>12}{'req.':>6}{'ratio':>8}")
    artifact = resnet_edit()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["HF_XET_CACHE"] = constants.HF_XET_CACHE = str(scratch / "xet-cache")
        for options in ((), ("--no-xet",)):
            constants.HF_HUB_DISABLE_XET = bool(options)
            hub = LoopbackHub.start(scratch / f"hub{len(options)}", *options)
            try:
                report(hub, artifact, scratch)
            finally:
                hub.kill()


if __name__ == "__main__":
    main()
