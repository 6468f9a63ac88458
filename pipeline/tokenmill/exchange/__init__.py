"""Exports to other programs' formats, and batch files in OpenAI's format."""
