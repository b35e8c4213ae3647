"""Settings from .env: what docker compose would read, and refusals by file and line."""

from pathlib import Path

import pytest

from deploy.local import dotenv
from workers.environment import BadSetting
from workers.settings import variables


def test_every_way_to_write_a_value() -> None:
    text = """
# a comment
PLAIN=10/minute
export EXPORTED=1
SPACED = 1/second, 10/minute   # a remark
HASH=a#b
EMPTY=
SINGLE='as it $stands \\n # here'  # a remark
DOUBLE="two\\nlines, a \\"quote\\" and \\$5"
TWICE=1
TWICE=2
"""
    assert dotenv.parse(text, ".env") == {
        "PLAIN": "10/minute",
        "EXPORTED": "1",
        "SPACED": "1/second, 10/minute",
        "HASH": "a#b",
        "EMPTY": "",
        "SINGLE": "as it $stands \\n # here",
        "DOUBLE": 'two\nlines, a "quote" and $5',
        "TWICE": "2",
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("RATE_LIMIT", "is not NAME=value"),
        ("RATE-LIMIT=1", "is not NAME=value"),
        ("A='secret", "A: the single quotation mark must be closed"),
        ("A='secret' more", "A: the single quotation mark must be closed on the same line, and nothing may follow it"),
        ('A="secret', "A: the double quotation mark must be closed"),
        ("A=${OTHER}", "A: $NAME is not replaced here"),
        ('A="x $OTHER"', "A: $NAME is not replaced here"),
        ("A=`id`", "A: $NAME is not replaced here"),
        ("A=it's", "A: put a value with quotation marks or backslashes in single quotes"),
        ('A="\\q"', "A: \\q means nothing here"),
    ],
)
def test_what_could_mean_two_things_is_refused_by_line_and_without_its_value(line: str, says: str) -> None:
    with pytest.raises(BadSetting) as refused:
        dotenv.parse(f"# first\n{line}\n", ".env")
    assert str(refused.value).startswith(f".env:2: {says}")
    assert "secret" not in str(refused.value)


def test_only_settings_are_taken_and_the_environment_wins(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"\xef\xbb\xbfRATE_LIMIT=1/second\r\nPATH=/nowhere\r\nMAX_ATTEMPTS=7\r\nLOG_FORMAT=\r\n")
    file = dotenv.read(path, variables().keys())
    assert file == {"RATE_LIMIT": "1/second", "MAX_ATTEMPTS": "7"}
    merged = dotenv.merged({"RATE_LIMIT": "2/second", "MAX_ATTEMPTS": "", "HOME": "/h"}, file)
    assert merged == {"RATE_LIMIT": "2/second", "MAX_ATTEMPTS": "7", "HOME": "/h"}


def test_the_example_is_one_that_is_read(repository: Path) -> None:
    assert dotenv.read(repository / ".env.example", variables().keys()) == {}
    example = (repository / ".env.example").read_text().replace("\n#", "\n").replace("JWT_SECRET_KEY=", "")
    assignments = "\n".join(line for line in example.splitlines() if line[:1].isupper() and "=" in line.split(" ")[0])
    assert "RATE_LIMIT" in dotenv.parse(assignments, ".env.example")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    for content, says in ((b"A=caf\xe9", "is not UTF-8"), (b"A=" + b"x" * 2**20, "is longer than 1,048,576 bytes")):
        path.write_bytes(content)
        with pytest.raises(BadSetting, match=says):
            dotenv.read(path, {"A"})
