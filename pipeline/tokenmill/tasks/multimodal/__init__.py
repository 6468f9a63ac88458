"""The `describe` and `transcribe` tasks, which read images and audio."""
