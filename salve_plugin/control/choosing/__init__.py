"""Choosing an edit for a goal: what is tried, how it is judged, what is taken."""
