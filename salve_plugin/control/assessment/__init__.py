"""What an edit costs and achieves, beside its ideal and controls that need no feature."""
