"""The whole peer as one pure machine: all cores together, driven by the daemon or a simulator."""
