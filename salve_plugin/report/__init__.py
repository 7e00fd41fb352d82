"""What people look at: a study as one folder of pages that opens from disk."""
