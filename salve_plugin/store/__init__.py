"""Files that prove what they hold: records, digests, places and seals. Knows no edit."""
