"""Keep one engine busy: rows in flight, duplicate requests, rows that crash engines."""
