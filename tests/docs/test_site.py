"""The documents as a site."""

from pathlib import Path

from helpers.command import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config


def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    """Strictly: no page is left out of the navigation, no link and no anchor is broken."""
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    assert "Quick start" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "infra" / "kubernetes" / "index.html").is_file()
