"""A unit on its way through its stages, without Ray; the seam to whatever executes them."""
