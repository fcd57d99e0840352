"""What a test here needs of the machine and does not find: a skip; a failure where all is to be shown, which `make rig-netns`
says with RIG=wanted."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    if os.environ.get("RIG") == "wanted":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
