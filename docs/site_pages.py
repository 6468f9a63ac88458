"""Add pages from outside `docs/` to the site, and rewrite links between them and `docs/`.

This is a hook for mkdocs (`mkdocs.yml`). The files in the repository keep links that work there.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Files outside `docs/` that pages link to.
_ELSEWHERE = (
    *("*.md", "infra/*/*", "jobs/*.yaml"),
    *("tests/helpers/s3_server.py", "tests/commands/screens/help.txt"),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside `docs/` under their paths relative to the repository root."""
    for pattern in _ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and name != "README.md":
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rewrite links: on the site, the content of `docs/` is at the root."""
    if (ROOT / "docs" / page.file.src_uri).is_file():
        depth = page.file.src_uri.count("/") + 1
        return markdown.replace(f"]({'../' * depth}", f"]({'../' * (depth - 1)}")
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
