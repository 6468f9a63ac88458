"""The `generate` task, which writes one or several answers per row."""
