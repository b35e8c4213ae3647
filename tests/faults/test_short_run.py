"""A short run of the whole suite: every kind of fault at least once, over a real stack."""

import pytest
from rich.console import Console

from deploy.faults import Options, run

pytestmark = pytest.mark.acceptance


@pytest.fixture
def options() -> Options:
    return Options.scaled(300, 0.8, 37, accounts=5, workers=2, kills=6, hangs=2)


def test_every_guarantee_holds_under_every_kind_of_fault(options: Options, tmp_path_factory, debian) -> None:  # type: ignore[no-untyped-def]
    console = Console(width=140)  # pytest shows it if the run fails
    environ = {"PATH": "/usr/bin:/bin", **(debian.as_new() if debian else {})}
    verdict = run(options, data_dir=tmp_path_factory.mktemp("f"), console=console, environ=environ, servers=debian)
    assert verdict.accepted == options.messages
    assert verdict.ended["sent"] > 0.8 * options.messages
    assert (verdict.lost, verdict.twice, verdict.strays, verdict.misordered) == ([], [], [], [])
    assert (verdict.unexpected, verdict.burnt, verdict.pressed) == ([], [], [])
    assert verdict.overshoot == 0
    few = options.limits[0]
    assert max(verdict.worst[few].values()) == few.count, "the limit was used to the full, or this shows nothing"
    assert verdict.holds
