"""docs/security.md names tests, settings and options that exist."""

import re
from pathlib import Path

from deploy.cli import paceline
from workers.settings import variables

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", DOCS))
    assert len(named) >= 8
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def test_every_setting_and_option_that_is_named_exists() -> None:
    options = {flag for command in paceline.commands.values() for option in command.params for flag in option.opts}
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)`", DOCS)) <= set(variables())
    assert set(re.findall(r"`(--\w[\w-]*)`", DOCS)) <= options


def test_every_defence_has_its_place_in_the_table() -> None:
    """A file of tests that nobody finds from there is one whose threat is not written down."""
    here = {path.name for path in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).name}
    assert {name for name in here if name not in DOCS} == set()
