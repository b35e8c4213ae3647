"""Decisions without I/O: functions of plain values. Imports nothing of the rest of Paceline."""
