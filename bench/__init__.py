"""Benchmarks of tokenmill's speed and of the quality of its answers."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
#: 57,169 package descriptions of Debian 12; optional.
PACKAGES = ROOT.parent / "shared" / "data" / "packages"
