"""The site's pages that stand elsewhere in the repository, and the links between both places.

A hook of mkdocs (`mkdocs.yml`): the files keep the links that are right where they stand.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: What pages link to, beside the pages of `docs/`.
_ELSEWHERE = ("*.md", "infra/*/*", "jobs/*.yaml", "tests/s3_server.py", "tests/screens/help.txt")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside of `docs/`, at the places that they have below the root."""
    for pattern in _ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and name != "README.md":
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """On the site, what is in `docs/` stands where the repository's root is."""
    if (ROOT / "docs" / page.file.src_uri).is_file():
        depth = page.file.src_uri.count("/") + 1
        return markdown.replace(f"]({'../' * depth}", f"]({'../' * (depth - 1)}")
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
