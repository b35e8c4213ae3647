"""CSV as spreadsheets and CRMs export it, as messages in the API's names."""

import csv
import re
from collections.abc import Iterator
from typing import Any

from api.schemas import Send
from deploy.send.documents import strict
from deploy.send.fields import SPREADSHEET_ERROR
from deploy.send.source import MOST_MESSAGE
from deploy.send.words import SendFailed, Unreadable, shown

COLUMNS = [field.data_key or name for name, field in Send().fields.items()]
DELIMITERS = ",;\t|"
_SEP = re.compile(r'"?sep=([^\w\s"]|\t)"?', re.IGNORECASE)
"""Excel's own first line, which names the delimiter."""
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad"


class _Lines:
    """Lines for the CSV reader. number: of the last line given out. It refuses a record that goes on for too long."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: list[str] = []
        self._size = 0
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self.number += 1
        self._size += len(line)
        if self._size > MOST_MESSAGE:
            raise csv.Error(f'the row is longer than {MOST_MESSAGE:,} characters; is a quotation mark (") not closed?')
        return line

    def put_back(self, line: str) -> None:
        self._again.append(line)
        self.number -= 1

    def begin_record(self) -> int:
        self._size = 0
        return self.number + 1


def messages(source: Iterator[str], name: str) -> Iterator[tuple[int, Any]]:
    """Every row that is not blank: the line it begins on, and its message. Raises SendFailed for a broken header or
    broken quotation marks, after which nothing can be read."""
    lines = _Lines(source)
    delimiter = _find_header(lines)
    if delimiter is None:
        return
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        begins = lines.begin_record()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise SendFailed(f"{name}:{begins}: {_said(error)}") from error
        if not columns:
            columns = _columns(cells, f"{name}:{begins}")
        elif any(cell.strip() for cell in cells):
            yield begins, _message(columns, cells)


def _find_header(lines: _Lines) -> str | None:
    """Pass over blank lines and `sep=;`, up to the header. Returns the delimiter; None if there is no header."""
    named = None
    for line in lines:
        if found := _SEP.fullmatch(line.strip("\r\n ").strip(_INVISIBLE)):
            named = found[1]
        elif line.strip(f'{DELIMITERS}{named or ""}{_INVISIBLE}" \r\n'):
            lines.put_back(line)
            return named or max(DELIMITERS, key=line.count)
    return None


def _columns(cells: list[str], where: str) -> list[str]:
    """The names of the columns, without empty ones at the end. Raises SendFailed."""
    columns = [_bare(cell) for cell in cells]
    while columns and not columns[-1]:
        columns.pop()
    there_are = f"columns are {', '.join(COLUMNS)}"
    for n, column in enumerate(columns):
        if column and column not in COLUMNS:
            raise SendFailed(f"{where}: there is no column {shown(column)}; {there_are}")
        if column and column in columns[:n]:
            raise SendFailed(f"{where}: the column {column} stands there twice; {there_are}")
    return columns


def _message(columns: list[str], cells: list[str]) -> Any:
    """A row as JSON would have it. An empty cell is a field left out, but for the content."""
    if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
        return Unreadable(f"Has {len(cells)} cells, and there are {len(columns)} columns.")
    if [_bare(cell) for cell in cells[: len(columns)]] == columns:
        return Unreadable("Is the header once more; remove this line.")
    message: dict[str, Any] = {}
    for n, (column, cell) in enumerate(zip(columns, cells, strict=False), 1):
        if cell == "" and column != "content":
            continue
        if not column:
            if cell.strip():
                return Unreadable(f"Has a cell in column {n}, which has no name.")
            continue
        if SPREADSHEET_ERROR.fullmatch(cell.strip()):
            return Unreadable(f"{cell.strip()} is an error of a spreadsheet; correct it there.", column)
        match column:
            case "priority":
                message[column] = int(cell) if cell.strip().isdecimal() else cell
            case "mediaIds" if not cell.lstrip().startswith("["):
                message[column] = [part.strip() for part in cell.split(";")]
            case "mediaIds" | "metadata":
                message[column] = found = strict.decode(cell)
                if isinstance(found, Unreadable):
                    return Unreadable(found.why, column)
            case _:
                message[column] = cell
    return message


def _bare(cell: str) -> str:
    return cell.strip().strip(_INVISIBLE).strip()


def _said(error: csv.Error) -> str:
    """The reader's words, with what to do where its words are riddling."""
    words = str(error)
    if "unexpected end of data" in words or "field limit" in words:
        return f'{words}; is a quotation mark (") not closed?'
    if "expected after" in words:
        return f'{words}; inside quotation marks write a quotation mark twice ("")'
    return words
