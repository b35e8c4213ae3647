"""How statements are written for plans that PostgreSQL keeps.

A kept plan may have been made while nothing waited: every quiet night ends like that. To such a plan the partial
indexes of waiting messages are empty, and to read one whole costs no more than a lookup. In the morning the same index
holds every message that waits, and the plan reads all of them for each message claimed. Hence three rules:

* A statement that has a row's id asks for its state in a way that no partial index knows (`unindexed`).
* A statement that looks for many lines looks for each by itself (LATERAL).
* A LIMIT that is a parameter stands for one tenth of all rows in a generic plan, and a tenth of a million is worth a
  sequential scan. A second LIMIT around it, of a number, tells the planner how few rows there are.

A test reads the plan of every statement (`test_plans.py`).
"""


def unindexed(column: str) -> str:
    """SQL: this text column, in a form that no index matches. The concatenation with '' keeps the planner away from
    partial indexes that mention the column, for a row that another index leads to."""
    return f"{column} || ''"
