"""The servers that a machine without any starts for itself, and what the fault suite may do to them."""

from collections.abc import Iterator

import pytest
import redis

from deploy.servers import Valkey


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("v"))
    yield server
    server.stop()


def test_the_address_leads_to_another_valkey_and_back_to_the_first_as_it_was_left(valkey: Valkey) -> None:
    url = valkey.start()
    kept = redis.Redis.from_url(url)
    kept.set("who", "first")
    first = kept.info("server")["run_id"]
    valkey.fail_over()
    assert kept.get("who") is None, "who was connected is connected to the other one now"
    kept.set("who", "second")
    second = kept.info("server")["run_id"]
    assert second != first
    valkey.fail_back()
    assert redis.Redis.from_url(url).get("who") == b"first"
    assert kept.info("server")["run_id"] == first, "it never restarted"
    valkey.fail_over()
    assert kept.get("who") is None, "the second is empty every time"
    assert kept.info("server")["run_id"] not in (first, second)


def test_stopped_while_failed_over_both_end(valkey: Valkey) -> None:
    url = valkey.start()
    pids = [redis.Redis.from_url(url).info("server")["process_id"]]
    valkey.fail_over()
    pids.append(redis.Redis.from_url(url).info("server")["process_id"])
    processes = [valkey._failed_over._process, valkey._server._process]
    valkey.stop()
    assert [process.pid for process in processes] == pids
    assert all(process.poll() is not None for process in processes)


def test_a_start_ends_both_that_a_killed_one_left_behind(valkey: Valkey) -> None:
    url = valkey.start()
    valkey.fail_over()
    left = [valkey._failed_over._process, valkey._server._process]
    again = Valkey(valkey._directory)
    try:
        assert again.start() == url
        for process in left:
            process.wait(5)
    finally:
        again.stop()
        valkey._server = valkey._failed_over = None
