"""Activations of a site, streamed to disk and read back."""

from salve_plugin.discover.recording.stream import record as record
