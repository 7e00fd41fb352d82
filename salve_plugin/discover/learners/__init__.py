"""Dictionary learners, one file each."""
