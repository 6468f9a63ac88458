"""`describe` and `transcribe`: images and audio."""
