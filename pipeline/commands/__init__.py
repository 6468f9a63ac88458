"""The commands, a file for each thing that a user is about; `cli` puts them together."""
