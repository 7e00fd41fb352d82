"""Permanent, closed-form weight edits and the exact strength at which a decision breaks."""
