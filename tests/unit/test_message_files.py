"""Files of messages as people have them: read as the API would, and every error with its line."""

import io
import json
import subprocess
import sys
from zoneinfo import ZoneInfo

import pytest

from deploy.send import Row, SendFailed, chunks, read
from deploy.send.source import MOST_MESSAGE
from deploy.send.words import MOST_ERRORS


def messages(text: str | bytes, zone: str | None = None, **defaults: str) -> list[dict[str, object]]:
    data = text.encode() if isinstance(text, str) else text
    time_zone = ZoneInfo(zone) if zone else None
    return [json.loads(row.body) for row in read(io.BytesIO(data), "f", time_zone=time_zone, **defaults)]


def refusal(text: str | bytes, zone: str | None = None) -> list[str]:
    with pytest.raises(SendFailed) as refused:
        messages(text, zone)
    return str(refused.value).splitlines()


def about(text: str | bytes, zone: str | None = None) -> list[str]:
    """What is wrong, line by line, without the introduction."""
    return refusal(text, zone)[1:]


def test_a_csv_has_the_apis_fields_as_columns() -> None:
    text = """recipientId,content,priority,accountId,mediaIds,sendAt,expiresAt,batchId,metadata
fan-1,"Hello, you",9,a,m-1;m-2,2030-01-01T09:00:00Z,2030-01-02T09:00:00Z,b,"{""n"": [1]}"
fan-2,Hi,,,,,,,
fan-3,,,,"[""m;1""]",,,,
"""
    assert messages(text) == [
        {
            "recipientId": "fan-1", "content": "Hello, you", "priority": 9, "accountId": "a",
            "mediaIds": ["m-1", "m-2"], "sendAt": "2030-01-01T09:00:00Z", "expiresAt": "2030-01-02T09:00:00Z",
            "batchId": "b", "metadata": {"n": [1]},
        },
        {"recipientId": "fan-2", "content": "Hi"},
        {"recipientId": "fan-3", "content": "", "mediaIds": ["m;1"]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "recipientId,content\nfan-1,Grüße\n",
        "\ufeffrecipientId,content\r\nfan-1,Grüße\r\n",
        "content;recipientId\nGrüße;fan-1",
        "recipientId\tcontent\n\nfan-1\tGrüße\n\n",
        '\n{"recipientId": "fan-1", "content": "Grüße"}\n\n',
        '\ufeff{"content": "Gr\\u00fc\\u00dfe", "recipientId": "fan-1"}\r\n',
        "recipientId,content\rfan-1,Grüße\r",
        "recipientId,content\nfan-1,Grüße\n,\n,,\n \n\n",
        "recipientId,content,,\nfan-1,Grüße,,\n",
        "recipientId,content\nfan-1,Grüße,,,\n",
        "\n\r\n,,\n\nrecipientId,content\nfan-1,Grüße\n",
        "sep=;\r\nrecipientId;content\r\nfan-1;Grüße\r\n",
        "\ufeffsep=|\r\n\r\nrecipientId|content\r\nfan-1|Grüße\r\n",
        "recipientId,,content\nfan-1,,Grüße\n",
        '"recipientId" , "content"\nfan-1,Grüße\n'.replace(" ", ""),
        " recipientId ,\u200bcontent\nfan-1,Grüße\n",
        f"recipientId,content{',' * 16_000}\nfan-1,Grüße{',' * 16_000}\n",
        '[{"recipientId": "fan-1", "content": "Grüße"}]',
        '\ufeff\n[\n  {\n    "recipientId": "fan-1",\n    "content": "Grüße"\n  }\n]\n',
    ],
    ids=[
        "plain",
        "from Excel",
        "semicolons",
        "tabs",
        "NDJSON",
        "NDJSON with a BOM",
        "CR alone",
        "trailing blank rows",
        "trailing empty columns",
        "trailing empty cells",
        "blank lines before the header",
        "sep=;",
        "sep=| with a BOM",
        "an empty column without a name",
        "quoted header",
        "spaces and invisible characters around names",
        "thousands of empty columns",
        "JSON array",
        "JSON array, indented",
    ],
)
def test_as_spreadsheets_and_programs_write_it(text: str) -> None:
    assert messages(text) == [{"recipientId": "fan-1", "content": "Grüße"}]


def test_what_a_message_does_not_say_the_call_may() -> None:
    text = '{"recipientId": "1", "content": "x"}\n{"recipientId": "2", "content": "x", "accountId": "b"}'
    assert [message["accountId"] for message in messages(text, accountId="a")] == ["a", "b"]


def test_every_error_is_told_with_the_line_it_begins_on() -> None:
    text = """recipientId,content,priority,metadata
fan-1,"two
lines",5,
,Hi,5,
fan-3,Hi,eleven,
fan-4,Hi,11,{
fan-5,Hi,5,,more
"""
    assert refusal(text) == [
        "nothing was sent; put these right first",
        "f:4: recipientId: Missing data for required field.",
        "f:5: priority: Not a valid integer.",
        "f:6: metadata: Is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "f:7: Has 5 cells, and there are 4 columns.",
    ]
    assert refusal('{"recipientId": "1", "content": "x"}\n[]\n{\n{"content": 5}')[1:] == [
        "f:2: Must be a JSON object.",
        "f:3: Is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "f:4: recipientId: Missing data for required field.",
        "f:4: content: Not a valid string.",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f: there is no message in it"),
        ("recipientId,content\n", "f: there is no message in it"),
        ("recipient,content\nfan-1,x\n", "f:1: there is no column 'recipient'; columns are recipientId, content, "),
        ("content,content\nx,x\n", "f:1: the column content stands there twice; columns are recipientId, content, "),
        ("\n\nrecipient\u200bId,content\nx,x\n", "f:3: there is no column 'recipient\\u200bId'; columns are "),
        ('recipientId,"content\nfan-1,x\n', 'f:1: unexpected end of data; is a quotation mark (") not closed?'),
        ('"recipientId"x,content\nfan-1,x\n', "f:1: ',' expected after '\"'; inside quotation marks write"),
        ('recipientId,content\nfan-1,x\nfan-2,"x\n', 'f:3: unexpected end of data; is a quotation mark (") not closed'),
        ('recipientId,content\nfan-1,"' + "x\n" * 200_000, "f:2: field larger than field limit (131072); is a quo"),
        ("recipientId,content\n" + ('"\n",' * 400_000), "f:2: the row is longer than 1,048,576 characters"),
        ("recipientId,content\nfan-1," + "x" * (MOST_MESSAGE + 70_000), "f:2: the line is longer than 1,048,576 char"),
        (
            "recipientId\tcontent\nfan-1\tx\n".encode("utf-16"),
            "f: is UTF-16 text, as Excel's Unicode Text is; save it as",
        ),
        ("recipientId\tcontent\nfan-1\tx\n".encode("utf-16-le"), "f: is UTF-16 text, as Excel's Unicode Text is"),
        (b"PK\x03\x04 and so on", "f: is a workbook or an archive; export it as CSV: in Excel choose File > Save As"),
        (b"\x1f\x8b\x08", "f: is compressed; unpack it first"),
        ("[]", "f: there is no message in it"),
        (b"recipientId,content\nfan-1,x\nfan-2,caf\xe9\n", "f:3: is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_file_that_is_none(text: str | bytes, says: str) -> None:
    assert refusal(text)[0].startswith(says)


@pytest.mark.parametrize("name", ["recipientId", "accountId", "batchId", "mediaIds"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("1.23E+15", "1.23E+15 is a long number that a spreadsheet has shortened, and its digits are lost; format the"),
        ("1,23e+15", "1,23e+15 is a long number that a spreadsheet has shortened"),
        ("\u200bfan-1", "Has an invisible character at place 1 (U+200B, ZERO WIDTH SPACE); remove it."),
        ("fan\u00a01", "Has an invisible character at place 4 (U+00A0, NO-BREAK SPACE); remove it."),
        ("fan-1\ufeff", "Has an invisible character at place 6 (U+FEFF, ZERO WIDTH NO-BREAK SPACE); remove it."),
        ("fan\t1", "Has an invisible character at place 4 (U+0009, control character); remove it."),
        ('="123"', "Is a formula of a spreadsheet; format the column as Text"),
        ("#N/A", "#N/A is an error of a spreadsheet; correct it there."),
    ],
)
def test_an_id_that_a_spreadsheet_has_changed_is_refused_by_line(name: str, value: str, says: str) -> None:
    message = {"recipientId": "fan-1", "content": "x"} | {name: [value] if name == "mediaIds" else value}
    [told] = about(f"\n{json.dumps(message, ensure_ascii=False)}\n")
    assert told.startswith(f"f:2: {name}: {says}")
    columns, cells = ",".join(message), ['"' + str(cell).replace('"', '""') + '"' for cell in message.values()]
    if name != "mediaIds":
        [told] = about(f"{columns}\n{','.join(cells)}\n")
        assert told.startswith(f"f:2: {name}: {says}")


def test_a_space_around_an_id_is_refused_and_one_within_is_not() -> None:
    assert about("recipientId,content\n fan-1,x\n") == ["f:2: recipientId: Begins or ends with a space; remove it."]
    assert messages("recipientId,content\nAnna B,x\n")[0]["recipientId"] == "Anna B"


@pytest.mark.parametrize("value", ["123456789012345678", "12e4", "5e-4f", "1.5", "Ärger", "a+b@c.de"])
def test_ids_that_only_look_strange_are_taken(value: str) -> None:
    assert messages(f"recipientId;content\n{value};x\n")[0]["recipientId"] == value


def test_what_else_a_spreadsheet_or_a_copy_leaves_behind_is_told_by_line() -> None:
    text = "recipientId,content,\nfan-1,#REF!\nfan-2,x,stray\nrecipientId,content,\n"
    assert about(text) == [
        "f:2: content: #REF! is an error of a spreadsheet; correct it there.",
        "f:3: Has 3 cells, and there are 2 columns.",
        "f:4: Is the header once more; remove this line.",
    ]
    assert about("recipientId,,content\nfan-1,stray,x\n") == ["f:2: Has a cell in column 2, which has no name."]


# Times


def test_a_time_without_an_offset_takes_that_of_the_time_zone() -> None:
    text = "recipientId,content,sendAt,expiresAt\nfan-1,x,2030-07-01 09:00,2030-12-01T09:00:00Z\n"
    [message] = messages(text, "Europe/Berlin")
    assert (message["sendAt"], message["expiresAt"]) == ("2030-07-01T09:00:00+02:00", "2030-12-01T09:00:00Z")
    [message] = messages('{"recipientId": "fan-1", "content": "x", "sendAt": "2030-12-01T09:00"}', "Europe/Berlin")
    assert message["sendAt"] == "2030-12-01T09:00:00+01:00"


@pytest.mark.parametrize(
    ("time", "zone", "says"),
    [
        ("2030-07-01 09:00", None, "Has no offset; write e.g. 2030-01-31T09:00:00+01:00, or give --time-zone."),
        ("2030-07-01", "Europe/Berlin", "Has no time of day; write e.g. 2030-01-31T09:00:00+01:00."),
        ("01.07.2030 09:00", "Europe/Berlin", "Is not a time; write e.g. 2030-01-31T09:00:00+01:00."),
        ("2030-03-31 02:30", "Europe/Berlin", "Does not exist in Europe/Berlin, since the clocks go forward then"),
        ("2030-10-27 02:30", "Europe/Berlin", "Comes twice in Europe/Berlin, since the clocks go back then; write its"),
        ("9999-12-31 23:30", "America/New_York", "Is out of reach; choose another year."),
    ],
)
def test_a_time_that_could_mean_several_is_refused_by_line(time: str, zone: str | None, says: str) -> None:
    [told] = about(f"recipientId,content,sendAt\nfan-1,x,{time}\n", zone)
    assert told.startswith(f"f:2: sendAt: {says}")


# JSON


def test_a_json_array_is_taken_and_its_errors_have_lines() -> None:
    assert messages('[{"recipientId": "1", "content": "x"},\n {"recipientId": "2", "content": "y"}]', batchId="b") == [
        {"recipientId": "1", "content": "x", "batchId": "b"},
        {"recipientId": "2", "content": "y", "batchId": "b"},
    ]
    text = '[\n{"recipientId": "1", "content": "x"},\n{"recipientId": "2"},\r\n5, {"content": NaN}\n]'
    assert about(text) == [
        "f:3: content: Missing data for required field.",
        "f:4: Must be a JSON object.",
        "f:4: Is not JSON: NaN is not a value there.",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"recipientId": "1", "content": "x"}', "f:1: Is not JSON: expected a comma or the end of the list."),
        ('[{"recipientId": "1", "content": "x"}\n{}]', "f:2: Is not JSON: expected a comma or the end of the list."),
        ('[{"recipientId": "1", "content": "x"},\n]', "f:2: Is not JSON: Expecting value"),
        ('[{"recipientId": "1", "content": "x"}]\n{}', "f:2: Is not JSON: something follows the end of the list."),
        ('[\n{"recipientId": "1", "content": "x}]' + "x" * 3_000_000, "f:2: Is not JSON: no whole value in 1,048,576 "),
        ("[" * 5000, "f:1: Is not JSON: maximum recursion depth exceeded"),
        ("[", "f:1: Is not JSON: Expecting value"),
    ],
)
def test_a_broken_array_is_told_by_line(text: str, says: str) -> None:
    [told] = about(text)
    assert told.startswith(says)


def test_a_name_that_stands_twice_is_refused_as_by_the_api() -> None:
    good, twice = '{"recipientId": "1", "content": "x"}', '{"recipientId": "1", "content": "x", "content": "y"}'
    inner = '{"recipientId": "1", "content": "x", "metadata": {"a": 1, "a": 2}}'
    for text in (f"{good}\n{twice}\n{inner}\n", f"[{good},\n{twice},\n{inner}]"):
        assert about(text) == [
            "f:2: The name 'content' stands twice in one object.",
            "f:3: The name 'a' stands twice in one object.",
        ]
    assert about('recipientId,content,metadata\n1,x,"{""a"": 1, ""a"": 2}"\n') == [
        "f:2: metadata: The name 'a' stands twice in one object."
    ]


# Size


READ_LARGE_FILES = """
import io, json
from deploy.send import SendFailed, read

def peak_kib():  # of this process alone: what getrusage says counts its parent before exec
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

class Long(io.RawIOBase):
    def __init__(self, begin, row, end, times):
        self.parts, self.rest = iter([begin, *[row] * times, end]), b""
    def read(self, size=-1):
        while len(self.rest) < size and (part := next(self.parts, b"")):
            self.rest += part
        given, self.rest = self.rest[:size], self.rest[size:]
        return given

text = "x" * 9000
message = json.dumps({"recipientId": "fan", "content": text}).encode()
begin = b"recipientId,content" + bytes([10])
kinds = {
    "csv": (begin, f"fan,{text}\\n".encode(), b""),
    "ndjson": (bytes([10]), message + bytes([10]), b""),
    "array": (b"[", message + b",", message + b"]"),
    "wrong rows": (begin, f",{text}\\n".encode(), b""),
    "one line": (begin, text.encode(), b""),
}
before = peak_kib()
for kind, (begin, row, end) in kinds.items():
    try:
        assert len(read(Long(begin, row, end, 1800), kind)) >= 1800
    except SendFailed:
        assert kind in ("wrong rows", "one line")
print(peak_kib() - before)
"""


def test_memory_does_not_grow_with_the_file() -> None:
    """Files of 16 MiB, and the most resident memory of a process that reads them."""
    command = [sys.executable, "-c", READ_LARGE_FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10 * 1024, f"{done.stdout.strip()} KiB more for files of 16 MiB"


def test_of_many_errors_the_first_are_told() -> None:
    told = refusal("recipientId,content,priority\n" + "fan-1,x,0\n" * 100)
    assert len(told) == 1 + MOST_ERRORS + 1
    assert told[-1] == f"… and {100 - MOST_ERRORS} more"


def test_lists_are_as_long_as_the_api_takes_them() -> None:
    def sizes(lengths: list[int], most: int, most_bytes: int = 10**6) -> list[int]:
        rows = [Row(n, b"x" * length) for n, length in enumerate(lengths)]
        return [len(chunk) for chunk in chunks(rows, most, most_bytes)]

    assert sizes([], 3) == []
    assert sizes([1] * 7, 3) == [3, 3, 1]
    assert sizes([1] * 6, 3) == [3, 3]
    assert sizes([60, 39, 1, 98, 1], 10, 100) == [2, 2, 1]
    assert sizes([500, 1, 500], 10, 100) == [1, 1, 1]
