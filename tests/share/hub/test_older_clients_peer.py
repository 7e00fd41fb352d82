"""The oldest Hub client that we allow, and the first of its second generation, do as the newest."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_client import LoopbackHub

from salve_plugin.share.artifact import EditArtifact

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

FLOW = """
import sys
import huggingface_hub
from salve_plugin.errors import HubError, MissingFileError
from salve_plugin.share.artifact import EditArtifact

version, first, second, url, repo_id = sys.argv[1:]
assert huggingface_hub.__version__ == version, huggingface_hub.__version__
one, two = EditArtifact.from_pretrained(first), EditArtifact.from_pretrained(second)
to = {"endpoint": url, "token": "hf_alice"}
pushed = one.push_to_hub(repo_id, tag="v1", **to)
assert pushed.created
assert not one.push_to_hub(repo_id, tag="v1", **to).created
assert two.push_to_hub(repo_id, create_pr=True, **to).pull_request == "refs/pr/1"
pulled = EditArtifact.from_pretrained(repo_id, endpoint=url, revision="v1")
assert pulled.digest == one.digest
assert pulled.origin.reference == pushed.reference
assert EditArtifact.verify(repo_id, endpoint=url, revision="refs/pr/1") == two.digest

def reason(**options):
    try:
        EditArtifact.from_pretrained(repo_id, endpoint=url, **options)
    except HubError as error:
        return error.reason

assert reason(revision="nope") == "no_revision"
assert reason(token="hf_nobody") == "unauthorized"
try:
    EditArtifact.from_pretrained(repo_id, endpoint=url, subfolder="nope")
except MissingFileError:
    print("done")
"""


@pytest.mark.parametrize("hub", ["plain", "xet"], indirect=True)
@pytest.mark.parametrize("version", ["0.30.0", "1.0.0"])
def test_an_older_client_pushes_and_pulls_and_its_errors_are_known(
    peer_python: Callable[..., Path],
    hub: LoopbackHub,
    repo_id: str,
    tiny: EditArtifact,
    other: EditArtifact,
    tmp_path: Path,
    version: str,
) -> None:
    python = peer_python(f"huggingface_hub-{version}", f"huggingface_hub=={version}", "hf-xet")
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    folders = [str(each.save_pretrained(tmp_path / each.digest)) for each in (tiny, other)]
    command = [sys.executable, "-c", FLOW, version, *folders, hub.url, repo_id]
    search = os.pathsep.join([str(packages), *sys.path])
    environment = {
        **os.environ,
        "PYTHONPATH": search,
        "HF_HUB_DISABLE_XET": str(int(not hub.xet)),
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["done"], done.stderr[-3000:]
