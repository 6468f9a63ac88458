"""Objects under a URL: the only folder that knows URL schemes."""
