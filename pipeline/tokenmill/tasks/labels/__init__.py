"""The `classify` and `tag` tasks, which give labels with probabilities."""
