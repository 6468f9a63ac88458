"""What several test files share: builders, stand-ins, servers and ways to run the command."""
