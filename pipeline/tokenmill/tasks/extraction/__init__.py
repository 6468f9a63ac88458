"""The `extract` task: typed columns from a JSON schema."""
