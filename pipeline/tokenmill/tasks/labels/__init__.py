"""`classify` and `tag`: labels with probabilities."""
