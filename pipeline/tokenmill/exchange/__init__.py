"""Outputs in other programs' formats, and batch files in OpenAI's."""
