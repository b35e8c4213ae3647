"""The fault suite: a real pipeline, a seeded schedule of faults, and an upstream that judges.

    schedule.py  which fault, when, to whom: pure, from the seed
    mail.py      which messages, and what becomes of them on the callers' side: pure, from the seed
    chaos.py     does the faults
    caller.py    asks the API and the upstream, again and again
    load.py      posts and cancels the messages, as callers who do not give up
    evidence.py  collects what both sides say in the end
    judge.py     compares them: pure
    report.py    the verdict as a table
    run.py       all of it, from an empty directory to the verdict

What is held against Paceline is only what the outside can see: 202s and other answers of the API, and the ledger of the
upstream, whose clock is the one that counts. The judge shares no code with what it judges.
"""

from deploy.faults.run import run
from deploy.faults.schedule import Options

__all__ = ["Options", "run"]
