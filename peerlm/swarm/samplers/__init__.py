"""Whom to mix a fragment with: one file for each way of choosing. They are named in swarm/sampler.py."""
