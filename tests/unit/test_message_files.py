"""Files of messages as people have them: read as the API would, and every error with its line."""

import json

import pytest

from deploy import send
from deploy.send import Row, SendFailed, chunks, read


def messages(text: str | bytes, **defaults: str) -> list[dict[str, object]]:
    data = text.encode() if isinstance(text, str) else text
    return [json.loads(row.body) for row in read(data, "f", **defaults)]


def refusal(text: str | bytes) -> list[str]:
    with pytest.raises(SendFailed) as refused:
        messages(text)
    return str(refused.value).splitlines()


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
    ],
    ids=["plain", "from Excel", "semicolons", "tabs", "NDJSON", "NDJSON with a BOM"],
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
        ("content,content\nx,x\n", "f:1: a column stands there twice; columns are recipientId, content, "),
        ('recipientId,content\nfan-1,x\nfan-2,"x\n', "f:3: unexpected end of data"),
        (b"recipientId,content\nfan-1,x\nfan-2,caf\xe9\n", "f:3: is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_file_that_is_none(text: str | bytes, says: str) -> None:
    assert refusal(text)[0].startswith(says)


def test_of_many_errors_the_first_are_told() -> None:
    told = refusal("recipientId,content,priority\n" + "fan-1,x,0\n" * 100)
    assert len(told) == 1 + send.MOST_ERRORS + 1
    assert told[-1] == f"… and {100 - send.MOST_ERRORS} more"


def test_lists_are_as_long_as_the_api_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(lengths: list[int], most: int) -> list[int]:
        return [len(chunk) for chunk in chunks([Row(n, b"x" * length) for n, length in enumerate(lengths)], most)]

    assert sizes([], 3) == []
    assert sizes([1] * 7, 3) == [3, 3, 1]
    assert sizes([1] * 6, 3) == [3, 3]
    monkeypatch.setattr(send, "MOST_BYTES", 100)
    assert sizes([60, 39, 1, 98, 1], 10) == [2, 2, 1]
    assert sizes([500, 1, 500], 10) == [1, 1, 1]
