"""Images and audio of rows: fetched within limits, decoded and checked."""
