"""Edits compared at equal terms: multiples of one edit, what they do, and how far that holds."""
