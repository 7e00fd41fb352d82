"""The `salve` command, run in this process."""

import json
from typing import Any

import pytest

from salve_plugin.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Run a command with --json; return its status and what it printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([*(str(each) for each in arguments), "--json"])
    return int(exit_info.value.code or 0), json.loads(capsys.readouterr().out)
