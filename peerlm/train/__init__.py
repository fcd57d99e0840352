"""How one node learns: the inner step and all it needs, and the worker process that runs it."""
