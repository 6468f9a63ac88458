"""Faults on purpose: a bad network before a real S3 server, and kills at random moments."""
