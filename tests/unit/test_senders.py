"""Places, and what becomes of them."""

import asyncio
import gc
import threading
from collections.abc import Callable
from contextvars import ContextVar

import pytest

from workers.services.senders import Send, Senders


def test_the_last_places_are_for_who_has_nothing_out_yet() -> None:
    senders = Senders(4, spare=1)
    assert senders.take(9, newcomer=False) == 3
    assert senders.take(9, newcomer=False) == 0
    assert senders.take(9, newcomer=True) == 1
    senders.release(2)
    assert senders.take(9, newcomer=False) == 1


async def ends() -> None:
    pass


async def breaks() -> None:
    raise LookupError


@pytest.mark.parametrize("send", [ends, breaks])
def test_a_place_is_free_again_whatever_became_of_the_send(send: Callable[[], Send]) -> None:
    went_before = threading.Event()

    async def last() -> None:
        went_before.set()

    senders = Senders(3, spare=0)
    assert senders.take(3, newcomer=True) == 3
    senders.start([send(), send(), last()])
    assert went_before.wait(30)
    senders.close()
    assert senders.take(4, newcomer=True) == 3


def test_sends_run_side_by_side_and_each_has_a_context_of_its_own() -> None:
    word: ContextVar[str] = ContextVar("word", default="nobody's")
    found: dict[int, list[str]] = {}
    together, done = asyncio.Barrier(3), threading.Barrier(4)

    async def send(n: int) -> None:
        before = word.get()
        word.set(f"of {n}")
        await together.wait()
        found[n] = [before, word.get()]
        await asyncio.to_thread(done.wait, 30)

    senders = Senders(3, spare=0)
    word.set("the caller's")
    senders.start([send(n) for n in range(3)])
    done.wait(30)
    assert found == {n: ["the caller's", f"of {n}"] for n in range(3)}
    assert word.get() == "the caller's"
    senders.close()


def test_close_cancels_what_is_still_out() -> None:
    out, cancelled = threading.Event(), threading.Event()

    async def never_ends() -> None:
        try:
            out.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    senders = Senders(1, spare=0)
    senders.start([never_ends()])
    assert out.wait(30)
    senders.close()
    assert cancelled.is_set()


def test_each_send_begins_even_if_closed_at_once() -> None:
    told: list[int] = []

    async def tells(n: int) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            told.append(n)

    for n in range(20):
        senders = Senders(1, spare=0)
        senders.start([tells(n)])
        senders.close()
    assert told == list(range(20))
    late = tells(20)
    with pytest.raises(RuntimeError, match="closed"):
        senders.start([late])
    late.close()


def test_no_thread_before_the_first_send_and_none_after_the_last_owner() -> None:
    others = threads()
    senders = Senders(1, spare=0)
    assert threads() <= others
    senders.start([ends()])
    (thread,) = threads() - others
    del senders
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "senders"}
