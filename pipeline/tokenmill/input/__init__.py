"""From a corpus to rows: listing, footers, filter, reader."""
