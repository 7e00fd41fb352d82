"""Find, validate and permanently edit the features of a vision model."""
