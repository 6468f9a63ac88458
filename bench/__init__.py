"""What tokenmill's answers and speed are worth, measured."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
#: 57,169 package descriptions of Debian 12, where they are at hand.
PACKAGES = ROOT.parent / "shared" / "data" / "packages"
