"""The swarm in a bottle: many real nodes in one process, on a virtual clock, by a seed."""
