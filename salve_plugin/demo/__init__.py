"""The `salve demo` command: the whole method, run on real networks and real data."""
