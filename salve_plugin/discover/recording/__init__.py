"""Activations of a site, streamed to disk and read back."""
