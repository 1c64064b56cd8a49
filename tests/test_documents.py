"""The documents: their links lead somewhere, and their code is that of the files they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "docs").glob("*.md"),
]


def anchor(heading):
    """The anchor that a heading gets."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("https:"):
            continue
        name, _, place = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            assert place in map(anchor, headings), target


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"`([a-z_0-9]+/[a-z_0-9/]*(?:\.(?:py|md|yaml|cpp))?)`", text):
        places = (ROOT / path, ROOT / "splatexp" / path)
        assert any(place.exists() for place in places), path


def test_the_example_in_the_readme_is_that_of_the_folder():
    example = (ROOT / "examples" / "patient.py").read_text(encoding="utf-8")
    assert example[example.index("@score(") :].rstrip() in (ROOT / "README.md").read_text(encoding="utf-8")
