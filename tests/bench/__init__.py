"""How fast, how flat, how fair: every figure a ratio to a baseline measured in the same run.

Absolute figures say as much about the machine as about the code. So each row of the table has a baseline that is
measured in turn with it, five times over, and what counts is the median of the ratios of the rounds.

    benchmark.py   what a row is: its sides, its figures, its target, and the arithmetic
    runner.py      turn by turn, in another order each round
    report.py      the table, for people and for docs/benchmarks.md
    stage.py       what the rows play on: servers, stacks of processes, the judge
    judge.py       an upstream that takes everything, keeps the times, and is no bottleneck
    load.py        callers over HTTP that are none either
    baselines/     what a user would build instead, tuned as its own documentation says

The rows, by theme: tokens · accept · dispatch · store · lateness · waiting · memory. `compare.py` puts the contestants
before a strict upstream instead, and kills them.

    python -m tests.bench [--only claim,accept] [--rounds 5] [--quick] [--markdown FILE]
"""
