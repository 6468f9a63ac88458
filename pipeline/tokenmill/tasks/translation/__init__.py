"""`translate`: segments, placeholders, glossaries and checks."""
