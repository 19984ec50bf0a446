"""What the repository says holds on every machine."""

from __future__ import annotations

import re
import tomllib

import pytest

TEXT = {".py", ".md", ".toml", ".txt", ".cfg", ".yml", ".yaml", ".css", ".js", ".html", ".sh", ""}
NOT_OURS = {".git", "runs", "data", "build", "dist"}
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root)/|[A-Z]:\\Users")


@pytest.fixture(scope="module")
def texts(root):
    """Every text file of the repository, without what is installed or generated."""
    found = {}
    folders = [root]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            relative = path.relative_to(root)
            hidden = path.is_dir() and path.name.startswith((".", "__")) and path.name != ".ci"
            if hidden or path.is_symlink() or relative.parts[0] in NOT_OURS:
                continue
            if path.is_dir():
                folders.append(path)
            elif path.suffix in TEXT:
                found[str(relative)] = path.read_text(encoding="utf-8", errors="replace")
    return found


def test_no_path_of_one_machine(texts):
    """No file names a directory that only the machine it was written on has."""
    found = {name: MACHINE_PATH.search(text) for name, text in texts.items()}
    assert {name: match[0] for name, match in found.items() if match} == {}


def test_constraints_pin_released_versions(root):
    """Every constraint is `name==version`: no address, no path, no range, and none twice."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [re.fullmatch(r"([A-Za-z0-9._-]+)==[0-9][A-Za-z0-9.!+]*", line) for line in lines]
    assert [line for line, name in zip(lines, names, strict=True) if not name] == []
    assert len({name[1].lower() for name in names}) == len(lines)


def test_every_dependency_is_pinned(root):
    """Every library that pyproject.toml asks for has its version in constraints.txt."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + [
        r for extra in project["optional-dependencies"].values() for r in extra
    ]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower() for requirement in asked} - {"fedadapt"}
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert names - pinned == set()


def test_contributing_is_short(root):
    """CONTRIBUTING.md has at most 60 lines."""
    assert len((root / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_changelog_has_a_place_for_the_next_change(root):
    """CHANGELOG.md opens with the changes that are not released yet."""
    headings = re.findall(r"^## (.*)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"


def test_decisions_are_numbered_and_complete(root):
    """Every decision has the next number, and says its context, the decision and the consequence."""
    pages = sorted((root / "docs" / "decisions").glob("*.md"))
    assert [page.name[:5] for page in pages] == [f"{number:04d}-" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        parts = re.findall(r"^(?:## |\*\*)(Context|Decision|Consequence)\b", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequence"], page.name
