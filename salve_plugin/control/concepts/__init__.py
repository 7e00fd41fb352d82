"""Concepts: what pictures have or have not, how a site holds it, and how sure that is."""
