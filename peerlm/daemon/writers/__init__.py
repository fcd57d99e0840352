"""Writers of curves for other tools, one a file, and the process that one runs in.

A tool's library is imported by the file that is named after it, when that writer is made, and by nothing else.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from peerlm.config import NodeSettings
from peerlm.errors import ConfigError

PACKAGES = {"csv": "", "tensorboard": "tensorboard", "wandb": "wandb"}
"""Writer → the package it needs; empty: none."""


def require_packages(settings: NodeSettings) -> None:
    """Raises `ConfigError` for the first writer whose package is not installed; nothing is imported."""
    for writer in settings.observe.writers:
        package = PACKAGES[writer]
        if package and not _is_installed(package):
            raise ConfigError(
                f"observe.writers has {writer}, and its package is not installed: "
                f"{sys.executable} -m pip install {package}"
            )


def _is_installed(package: str) -> bool:
    """A folder that merely has its name, such as wandb makes, is no package."""
    found = find_spec(package)
    return found is not None and found.origin is not None
