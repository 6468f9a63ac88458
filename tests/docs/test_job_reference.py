"""The job file's reference is what the model says, key for key."""

import sys

from helpers.command import ROOT
from tokenmill.job.job import Job

sys.path.insert(0, str(ROOT / "docs"))
from job_reference import PATH, reference


def test_the_committed_page_is_up_to_date() -> None:
    """docs/job.md is what `make docs` writes."""
    assert PATH.read_text(encoding="utf-8") == reference(), "run make docs"


def test_every_section_and_key_is_there() -> None:
    """Each section of the schema has a heading, and each of its keys a row below it."""
    schema = Job.model_json_schema()
    chapters = {part.split("\n", 1)[0]: part for part in reference().split("\n## ")[1:]}
    assert chapters.keys() == {"Job", *schema["$defs"]}
    for name, section in {"Job": schema, **schema["$defs"]}.items():
        for key in section.get("properties", {}):
            assert f"\n| `{key}` |" in chapters[name], f"{name}.{key}"


def test_every_link_leads_to_a_heading() -> None:
    """A section that a key takes is linked, and is on the page."""
    text = reference()
    headings = {line[3:].lower() for line in text.splitlines() if line.startswith("## ")}
    linked = {part.split(")", 1)[0] for part in text.split("](#")[1:]}
    assert linked
    assert linked <= headings
