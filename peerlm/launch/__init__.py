"""Nodes on machines that somebody else's cluster hands out: each started where it runs, and then left to itself.

A launcher is no coordinator. It finds machines, starts a daemon on each as a process that outlives it, and looks
whether it is still there. Who mixes with whom, and what is learnt, never passes through here.

    keeper.py   keeps one machine's daemon running; knows no cluster
    detach.py   the step between keeper and daemon, so that the one can die without the other
    on_ray.py   a keeper on each of N Ray nodes
"""
