"""The race between the addresses of a name, and the order in which they start."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.channels.http.addresses import Address, in_turns
from workers.channels.http.dial import first_of

STAGGER_S = 0.05


class Line:
    """What an attempt opens."""

    def __init__(self, name: str) -> None:
        self.name, self.closed = name, False

    def close(self) -> None:
        self.closed = True


class Attempts:
    """opened: what was opened. begun: the attempts that were begun, in order."""

    def __init__(self) -> None:
        self.opened: list[Line] = []
        self.begun: list[str] = []

    def one(
        self, name: str, after_s: float = 0.0, *, fails: bool = False, stubborn: bool = False
    ) -> Callable[[], Coroutine[Any, Any, Line]]:
        """stubborn: succeeds although it is cancelled."""

        async def attempt() -> Line:
            self.begun.append(name)
            try:
                await asyncio.sleep(after_s)
            except asyncio.CancelledError:
                if not stubborn:
                    raise
            if fails:
                raise OSError(name)
            self.opened.append(Line(name))
            return self.opened[-1]

        return attempt


async def won(attempts: Attempts, *ones: Callable[[], Coroutine[Any, Any, Line]], stagger_s: float = STAGGER_S) -> str:
    line = await first_of(ones, stagger_s=stagger_s)
    for _ in range(5):  # until what was cancelled has ended
        await asyncio.sleep(0)
    assert [one.name for one in attempts.opened if not one.closed] == [line.name]
    return line.name


def test_the_first_to_succeed_wins_and_no_other_begins() -> None:
    attempts = Attempts()
    assert asyncio.run(won(attempts, attempts.one("a"), attempts.one("b"))) == "a"
    assert attempts.begun == ["a"]


def test_the_next_begins_when_the_one_before_takes_long() -> None:
    attempts = Attempts()
    assert asyncio.run(won(attempts, attempts.one("a", 60), attempts.one("b"), attempts.one("c"))) == "b"
    assert attempts.begun == ["a", "b"]


def test_the_next_begins_at_once_when_the_one_before_fails() -> None:
    attempts = Attempts()
    assert asyncio.run(won(attempts, attempts.one("a", fails=True), attempts.one("b"), stagger_s=60)) == "b"


def test_one_that_takes_long_may_still_win() -> None:
    attempts = Attempts()
    slow, slower = attempts.one("slow", 3 * STAGGER_S), attempts.one("slower", 60)
    assert asyncio.run(won(attempts, slow, slower, attempts.one("bad", fails=True))) == "slow"
    assert attempts.begun == ["slow", "slower", "bad"]


def test_what_succeeds_although_it_is_too_late_is_closed() -> None:
    attempts = Attempts()
    assert asyncio.run(won(attempts, attempts.one("a", 60, stubborn=True), attempts.one("b"))) == "b"
    assert [line.name for line in attempts.opened] == ["b", "a"]


def test_all_failing_raises_what_one_of_them_raised() -> None:
    attempts = Attempts()
    with pytest.raises(OSError, match="b"):
        asyncio.run(first_of([attempts.one("a", fails=True), attempts.one("b", 0.01, fails=True)], stagger_s=60))


def test_a_race_that_is_cancelled_leaves_nothing_open() -> None:
    attempts = Attempts()

    async def cancelled() -> None:
        ones = [attempts.one("a", 60), attempts.one("b", 60, stubborn=True)]
        race = asyncio.ensure_future(first_of(ones, stagger_s=0))
        while len(attempts.begun) < 2:
            await asyncio.sleep(0.001)
        race.cancel()
        with pytest.raises(asyncio.CancelledError):
            await race
        for _ in range(5):
            await asyncio.sleep(0)
        assert [line.closed for line in attempts.opened] == [True]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(cancelled())


def address(family: int, number: int) -> Address:
    return Address(family, socket.SOCK_STREAM, 6, (f"{family}.{number}", 443))


ADDRESSES = st.lists(
    st.builds(address, st.sampled_from([socket.AF_INET, socket.AF_INET6]), st.integers(min_value=0, max_value=5))
)


@given(ADDRESSES)
def test_each_address_has_one_turn_and_families_alternate(addresses: list[Address]) -> None:
    turns = in_turns(addresses)
    assert sorted(map(str, turns)) == sorted(map(str, set(addresses)))
    families = [one.family for one in turns]
    fewer = min(families.count(socket.AF_INET), families.count(socket.AF_INET6))
    assert all(families[n] != families[n + 1] for n in range(2 * fewer - 1))
    assert turns[:1] == addresses[:1]  # the system's first choice


@given(ADDRESSES, st.integers(min_value=0, max_value=5))
def test_what_worked_goes_first_while_the_name_still_has_it(addresses: list[Address], number: int) -> None:
    worked = address(socket.AF_INET, number)
    turns = in_turns(addresses, worked)
    assert set(turns) == set(addresses)
    assert (turns[:1] == [worked]) == (worked in addresses)
