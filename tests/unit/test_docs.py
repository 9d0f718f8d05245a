"""What the pages name is there: tests in the list of differences, links between pages, the packages of src."""

import re

import pytest

from tests.helpers import REPO_ROOT

PAGES = [*sorted(REPO_ROOT.glob("*.md")), *sorted((REPO_ROOT / "docs").glob("*.md")), REPO_ROOT / "benchmarks/NOTES.md"]


def test_every_difference_names_tests_that_exist():
    names = re.findall(r"[\w/]*test_\w+\.py", (REPO_ROOT / "docs/parity.md").read_text(encoding="utf-8"))
    assert len(names) > 100
    tests = REPO_ROOT / "tests"
    assert [name for name in names if not ((tests / "unit" / name).is_file() or (tests / name).is_file())] == []


def anchors(text: str) -> set[str]:
    """The names by which links reach the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            wrong.append(link)
    assert wrong == []


def test_the_architecture_names_every_package():
    text = (REPO_ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (REPO_ROOT / "src").glob("*/__init__.py")}
    assert packages == set(re.findall(r"^src/(\w+)/ ", text, re.MULTILINE))
