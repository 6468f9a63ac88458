"""`generate`: text, one answer or several."""
