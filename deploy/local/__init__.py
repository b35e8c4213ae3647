"""What a Paceline on one machine (`paceline up`) keeps and tells, beside its stack of processes.

dotenv.py     settings from a file .env
upstream.py   which upstream its data are sent to
running.py    how other commands find a stack that runs
follow.py     a line on the terminal for every message that moves
stopping.py   ^C, also while it starts
"""
