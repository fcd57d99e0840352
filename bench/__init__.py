"""Figures: one script for each promise that peerlm makes about itself, on real nodes.

`python -m bench.NAME` measures, prints a table with the machine, the date and the commit, and ends
with status 1 when a bound is missed; `--record` puts the table into docs/results.md. Nothing here is
part of peerlm, and nothing of peerlm is changed for it: nodes are started by the commands that a person
types, and watched through their control sockets; members that mix on command are `peerlm bench`'s.
"""
