"""Clean texts before they are put into a prompt."""
