"""From a corpus to rows: list the shards, read their footers, filter and read rows."""
