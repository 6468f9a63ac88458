"""An output: its layout, schema, commits, verification and what can be read from it."""
