"""What a chat's history proves of a message whose outcome is unknown."""

import html
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.domain.lookup import Author, Entry, Evidence, Finding, History, compare, same_text
from workers.domain.message import Claim


def claim(content: str = "Hello", media_ids: tuple[str, ...] = ()) -> Claim:
    return Claim(
        message_id="msg_1", account_id="a", recipient_id="fan-1", priority=5, content=content, media_ids=media_ids,
        attempt=1, tries=1, token="t",
    )  # fmt: skip


def entry(
    text: str, author: Author = Author.ACCOUNT, media_ids: tuple[str, ...] | None = (), id: str = "up_1"
) -> Entry:
    return Entry(id, text, media_ids, author)


KEPT = {
    "trimmed": str.strip,
    "composed": lambda text: unicodedata.normalize("NFC", text),
    "with LF": lambda text: text.replace("\r\n", "\n"),
    "as HTML": lambda text: "<p>" + html.escape(text).replace("\n", "<br />") + "</p>",
    "in paragraphs": lambda text: "".join(f"<p>{html.escape(line)}</p>" for line in text.splitlines()),
    "with white space made one": lambda text: " ".join(text.split()),
}


@pytest.mark.parametrize("author", [Author.ACCOUNT, Author.UNKNOWN])
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize(
    "text", ["Hello Anna \n", "Cafe\u0301", "one\r\ntwo", "a & b", "1 < 2 > 0", "Hi \N{ZERO WIDTH SPACE}you"]
)
def test_a_message_is_recognised_however_the_upstream_keeps_it(text: str, kept: str, author: Author) -> None:
    found = compare(History((entry(KEPT[kept](text), author),)), claim(text), frozenset())
    assert (found.evidence, found.upstream_id) == (Evidence.FOUND, "up_1")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.sampled_from(sorted(KEPT)))
def test_any_text_is_recognised(text: str, kept: str) -> None:
    assert same_text(text, KEPT[kept](text))


@pytest.mark.parametrize("other", ["Hello Ann", "Hello, Anna", "hello anna", ""])
def test_another_text_is_another_text(other: str) -> None:
    assert not same_text("Hello Anna", other)


def test_the_recipients_own_words_are_never_ours() -> None:
    history = History((entry("ok", Author.RECIPIENT),))
    assert compare(history, claim("ok"), frozenset()).evidence is Evidence.ABSENT


@pytest.mark.parametrize("author", [Author.ACCOUNT, Author.UNKNOWN])
def test_an_entry_that_nobody_can_explain_is_no_proof_of_absence(author: Author) -> None:
    history = History((entry("Hel…", author),))
    assert compare(history, claim("Hello"), frozenset()).evidence is Evidence.UNCLEAR
    assert compare(history, claim("Hello"), frozenset({"up_1"})).evidence is Evidence.ABSENT


def test_a_message_further_back_is_found_behind_one_that_nobody_can_explain() -> None:
    history = History((entry("typed by hand", id="up_2"), entry("Hello")))
    assert compare(history, claim("Hello"), frozenset()).upstream_id == "up_1"


def test_the_same_text_with_other_media_may_be_ours_rewritten() -> None:
    history = History((entry("Look", media_ids=("m2",)),))
    assert compare(history, claim("Look", ("m1",)), frozenset()).evidence is Evidence.UNCLEAR
    assert compare(history, claim("Look", ("m2",)), frozenset()).evidence is Evidence.FOUND
    untold = History((entry("Look", media_ids=None),))
    assert compare(untold, claim("Look", ("m1",)), frozenset()).evidence is Evidence.FOUND


def test_a_history_that_is_not_whole_proves_presence_but_not_absence() -> None:
    torn = History((entry("Hello"),), error="timed out")
    assert compare(torn, claim("Hello"), frozenset()).evidence is Evidence.FOUND
    assert compare(torn, claim("Hello"), frozenset({"up_1"})).evidence is Evidence.UNAVAILABLE
    away = History(error="connection refused", away=True)
    assert compare(away, claim("Hello"), frozenset()) == Finding(Evidence.AWAY, error="connection refused")
