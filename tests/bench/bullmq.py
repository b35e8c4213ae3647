"""BullMQ's place among the rivals: a Node program, there if Node and its packages are."""

import shutil
from dataclasses import dataclass

from tests.bench.rivals import PROCESSES, ROOT, Kind

HOME = ROOT / "tests" / "bench" / "baselines" / "bullmq"


@dataclass(frozen=True, slots=True)
class NodeKind(Kind):
    @property
    def installed(self) -> bool:
        return shutil.which("node") is not None and (HOME / "node_modules" / "bullmq").is_dir()

    def arguments(self) -> list[str]:
        return [str(shutil.which("node")), str(HOME / "worker.mjs"), str(PROCESSES)]

    def fill_arguments(self, run: str, messages: int, accounts: int) -> list[str]:
        return [str(shutil.which("node")), str(HOME / "enqueue.mjs"), run, str(messages), str(accounts)]


BULLMQ = NodeKind("bullmq", "", 6)
