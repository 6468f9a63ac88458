"""Cut shards into units. Pure functions: nothing is read or written."""
