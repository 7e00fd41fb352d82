"""The `salve` command."""

from salve_plugin.cli.app import main

__all__ = ["main"]
