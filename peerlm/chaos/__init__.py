"""Faults on real hosts, from a file: what happens when, to whom, and what became of the swarm."""
