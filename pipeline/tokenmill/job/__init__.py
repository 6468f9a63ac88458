"""The job file: from YAML to a checked job."""
