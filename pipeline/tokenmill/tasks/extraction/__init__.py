"""`extract`: typed columns from a JSON schema."""
