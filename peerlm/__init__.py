"""peerlm: a peer-to-peer training daemon for language models."""

__version__ = "0.1.0"
