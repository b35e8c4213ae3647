"""Checks of single fields, beyond the API's own: what spreadsheets and copying do to ids and times."""

import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

IDS = ("recipientId", "accountId", "batchId")
TIMES = ("sendAt", "expiresAt")

_SHORTENED = re.compile(r"[+-]?\d+(?:[.,]\d+)?[Ee][+-]\d+")
_FORMULA = re.compile(r"=.*", re.DOTALL)
SPREADSHEET_ERROR = re.compile(r"#(?:N/A|REF!|NAME\?|VALUE!|NUM!|NULL!|DIV/0!)")
_AS_TEXT = "format the column as Text in the spreadsheet and export it again"


def of_spreadsheets(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields with an id that is not what it was, and why: (field, words)."""
    for name in IDS:
        if isinstance(value := message.get(name), str) and (words := _id_error(value)):
            yield name, words
    media = message.get("mediaIds")
    for value in media if isinstance(media, list) else ():
        if isinstance(value, str) and (words := _id_error(value)):
            yield "mediaIds", words
            return


def _id_error(text: str) -> str | None:
    if _SHORTENED.fullmatch(text):
        return f"{text} is a long number that a spreadsheet has shortened, and its digits are lost; {_AS_TEXT}."
    if _FORMULA.fullmatch(text):
        return f"Is a formula of a spreadsheet; {_AS_TEXT}."
    if SPREADSHEET_ERROR.fullmatch(text):
        return f"{text} is an error of a spreadsheet; correct it there."
    for at, character in enumerate(text, 1):
        if not (character == " " or character.isprintable()):
            name = unicodedata.name(character, "control character")
            return f"Has an invisible character at place {at} (U+{ord(character):04X}, {name}); remove it."
    if text != text.strip():
        return "Begins or ends with a space; remove it."
    return None


def placed(text: str, zone: ZoneInfo | None) -> str:
    """A time with its offset: as written if it has one, else by the time zone. Raises ValueError with the remedy."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("Is not a time; write e.g. 2030-01-31T09:00:00+01:00.") from None
    if len(text) <= len("2030-W01-1"):
        raise ValueError("Has no time of day; write e.g. 2030-01-31T09:00:00+01:00.")
    if moment.tzinfo is not None:
        return text
    if zone is None:
        raise ValueError("Has no offset; write e.g. 2030-01-31T09:00:00+01:00, or give --time-zone.")
    return _local(moment, zone).isoformat()


def _local(moment: datetime, zone: ZoneInfo) -> datetime:
    """A wall-clock time of a time zone. Raises ValueError if the clocks skip it or show it twice."""
    earlier, later = moment.replace(tzinfo=zone, fold=0), moment.replace(tzinfo=zone, fold=1)
    try:
        back = earlier.astimezone(UTC).astimezone(zone)
    except OverflowError:
        raise ValueError("Is out of reach; choose another year.") from None
    if back.replace(tzinfo=None) != moment:
        raise ValueError(f"Does not exist in {zone.key}, since the clocks go forward then; choose another time.")
    if earlier.utcoffset() != later.utcoffset():
        raise ValueError(f"Comes twice in {zone.key}, since the clocks go back then; write its offset.")
    return earlier
