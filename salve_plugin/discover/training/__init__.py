"""Fit a dictionary to recorded activations: what all learners share."""
