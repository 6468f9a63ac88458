"""Pages and comparisons made from outputs: figures, plots, HTML."""
