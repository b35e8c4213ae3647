"""Which upstream a local Paceline sends to."""

import stat
from pathlib import Path

import pytest

from deploy.local import upstream

REAL = "https://api.example.com"


@pytest.mark.parametrize(
    ("asked", "named", "before", "new", "goes_to"),
    [
        (None, "", "", True, None),
        (None, "", "sandbox", False, None),
        (None, REAL, "", True, REAL),
        (None, REAL, "sandbox", False, REAL),
        (None, "", REAL, False, REAL),  # what waits there was meant for it
        (None, "", "", False, ""),  # data of a version that kept no choice
        (True, REAL, REAL, False, None),
        (True, "", "", False, None),
        (False, "", "", True, ""),
        (False, "", "sandbox", False, ""),
        (False, "", REAL, False, REAL),
        (False, REAL, "sandbox", False, REAL),
    ],
)
def test_the_choice(asked: bool | None, named: str, before: str, new: bool, goes_to: str | None) -> None:
    assert upstream.choose(asked=asked, named=named, before=before, new=new).base_url == goes_to


def test_it_is_said_and_how_to_name_a_real_one() -> None:
    def words(named: str = "", before: str = "", new: bool = False) -> str:
        return upstream.choose(asked=None, named=named, before=before, new=new).words.format(sandbox="http://s")

    assert words(new=True).startswith("messages go to the sandbox at http://s")
    assert "ONLYFANS_BASE_URL" in words(new=True)
    assert words(named="https://u:secret@h/x", before="sandbox") == (
        "messages go to https://(not shown)@h/x, also those that waited for the sandbox"
    )
    assert words(before=REAL) == f"messages go to {REAL}, as before; ONLYFANS_BASE_URL changes that"
    assert "choose --sandbox" in words()


def test_it_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    assert upstream.kept(tmp_path) == ""
    for choice, kept in ((None, "sandbox"), (REAL, REAL), ("", REAL)):
        upstream.keep(tmp_path, upstream.Choice(choice, ""))
        assert upstream.kept(tmp_path) == kept
    assert stat.S_IMODE((tmp_path / "upstream").stat().st_mode) == 0o600
