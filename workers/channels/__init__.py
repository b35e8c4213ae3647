"""The upstream platforms: each is a small adapter behind `base.Channel`, in a module of its own.

base        what a channel is
onlyfans    one of them
http/       what those share that speak HTTP
"""
