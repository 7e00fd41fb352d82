"""Edits as small verified folders."""
