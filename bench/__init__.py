"""What tokenmill's answers and speed are worth, measured."""
