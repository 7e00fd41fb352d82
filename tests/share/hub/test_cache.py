"""The Hub client's cache where something is wrong with it beside the files themselves."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_client import LoopbackHub

from salve_plugin.errors import HubError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.hub.push import Pushed

Push = Callable[..., Pushed]
Pull = Callable[..., EditArtifact]


@pytest.mark.parametrize("hub", ["plain"], indirect=True)
def test_what_the_cache_remembers_of_a_branch_may_be_damaged(
    push: Push, pull: Pull, tiny: EditArtifact, hub: LoopbackHub, hf_home: Path
) -> None:
    commit = push(tiny).reference.commit
    pull()
    (remembered,) = hf_home.glob("hub/models--*/refs/main")
    for damaged in (b"\xff" * 40, b"\0" * 40, b"../../elsewhere", b""):
        remembered.write_bytes(damaged)
        with pytest.raises(HubError, match=r"'main' of .* is not in the cache") as caught:
            pull(local_files_only=True)
        assert caught.value.reason == "not_cached"
        hub.fault("status", "/resolve/main/", times=3, arg=503)
        with pytest.raises(HubError, match="the Hub has a problem"):
            pull()
        hub.clear()
        assert pull(revision=commit, local_files_only=True).digest == tiny.digest
        assert remembered.read_bytes() == damaged
        assert pull().digest == tiny.digest
        assert remembered.read_text() == commit


PROGRAM = """\
from salve_plugin import EditArtifact

def read():
    return EditArtifact.from_pretrained(REPO, endpoint="http://127.0.0.1:9")  # nobody is there

print(read().digest)
"""


@pytest.mark.parametrize("hub", ["plain"], indirect=True)
def test_the_warning_about_an_old_answer_names_the_line_that_reads(
    push: Push, pull: Pull, tiny: EditArtifact, hub: LoopbackHub, repo_id: str, tmp_path: Path
) -> None:
    push(tiny)
    pull()
    # In a program of its own: here, checks of annotations stand between the calls.
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("REPO", repr(repo_id)))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.stdout == f"{tiny.digest}\n"
    assert f"{program}:4: UserWarning: cannot look up 'main' of {repo_id}" in done.stderr
