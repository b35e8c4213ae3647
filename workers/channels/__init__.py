"""The upstream platforms: each is a small adapter behind `base.Channel`, in a module of its own.

base        what a channel is, and what a kind of channel declares
registry    the kinds that are installed
fields      of the schemas that kinds declare
onlyfans    one of them
http/       what those share that speak HTTP
"""
