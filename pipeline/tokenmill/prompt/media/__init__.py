"""Images and audio of rows: fetched within bounds, decoded and checked."""
