"""The `translate` task: segments, placeholders, glossaries and checks."""
