"""The command line: one file per command, with its options, one call and what it prints."""
