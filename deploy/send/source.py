"""A file's bytes as text: UTF-8, in pieces or in lines, with the line of whatever is not UTF-8."""

import codecs
import re
from collections.abc import Iterator
from typing import IO

from deploy.send.words import SendFailed

PIECE = 64 * 1024
MOST_MESSAGE = 1024 * 1024
"""Characters of one line, CSV record or JSON object: several times the longest message that the API takes."""

SAVE_AS = "in Excel choose File > Save As > CSV UTF-8 (Comma delimited)"
_OTHER_FORMATS = {
    codecs.BOM_UTF16_LE: f"is UTF-16 text, as Excel's Unicode Text is; save it as UTF-8: {SAVE_AS}",
    codecs.BOM_UTF16_BE: "is UTF-16 text; save it as UTF-8",
    b"PK\x03\x04": f"is a workbook or an archive; export it as CSV: {SAVE_AS}",
    b"\xd0\xcf\x11\xe0": f"is an Excel workbook; export it as CSV: {SAVE_AS}",
    b"\x1f\x8b": "is compressed; unpack it first",
}
_END = re.compile(r"\r\n|\n|\r(?=[^\n])")
"""Of a line. A CR at the end of what has been read may be half of CR LF."""
_BREAK = re.compile(rb"\r\n|\n|\r")


def pieces(file: IO[bytes], name: str) -> Iterator[str]:
    """The text, without a byte order mark. Raises SendFailed where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line, first = 1, True
    while True:
        data = file.read(PIECE)
        if first:
            _refuse_other_formats(data, name)
            first = False
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = line + len(_BREAK.findall(error.object[: error.start]))
            raise SendFailed(f"{name}:{at}: is not UTF-8; save the file as UTF-8 ({SAVE_AS})") from error
        if text:
            yield text
        if not data:
            return
        # CR LF that falls between two pieces counts twice, which only this error's line number would notice.
        line += len(_BREAK.findall(data))


def lines(text: Iterator[str], name: str) -> Iterator[str]:
    """Whole lines with their ends: LF, CR LF or CR. Raises SendFailed for one that is too long to hold a message."""
    number, rest = 0, ""
    for piece in text:
        rest, begin = rest + piece, 0
        for end in _END.finditer(rest):
            yield rest[begin : end.end()]
            number, begin = number + 1, end.end()
        rest = rest[begin:]
        if len(rest) > MOST_MESSAGE:
            raise SendFailed(f"{name}:{number + 1}: the line is longer than {MOST_MESSAGE:,} characters")
    if rest:
        yield rest


def _refuse_other_formats(beginning: bytes, name: str) -> None:
    for magic, words in _OTHER_FORMATS.items():
        if beginning.startswith(magic):
            raise SendFailed(f"{name}: {words}")
    if beginning[:2].count(0) == 1:
        raise SendFailed(f"{name}: {_OTHER_FORMATS[codecs.BOM_UTF16_LE]}")
