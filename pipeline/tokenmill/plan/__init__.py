"""From shards to units. Pure functions; nothing is read or written."""
