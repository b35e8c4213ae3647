"""The `paceline` command: contract §3. Exit codes: 0, 1 for a failure, 2 for a wrong call or setting.

root.py          the command itself, and how its errors end
stacks.py        up, demo, faults: a whole pipeline
processes.py     api, worker, pacer: one process of production
upkeep.py        migrate, rekey, check
callers.py       token, send
options.py       options that several commands have
surroundings.py  the terminal, signals, .env, and a stack that runs
"""

from deploy.cli.root import main, paceline

__all__ = ["main", "paceline"]
