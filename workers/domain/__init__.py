"""Decisions without I/O: functions of plain values. Imports nothing of the rest of Paceline.

state      the life of a message, and every move in it
message    a message as it enters, as it is claimed, and the line that it stands in
outcome    what came of one request, and who is to blame
decisions  what follows: after an attempt, after a lookup; and how long to wait
lookup     whether a message arrived, by the upstream's history
events     what has happened: a fact for each move
health     how an account and the whole are doing, in words
budgets    which accounts draw on one budget
actor      who asked for what
remarks    what a check has to say
filters    which rows a caller asks for, and which it may know of
errors     what can go wrong
"""
