"""Reports on outputs and comparisons of them: statistics, plots, HTML pages."""
