"""All but test_ray.py and test_prometheus.py make network namespaces, and so need root and `ip`."""

from __future__ import annotations

from pathlib import Path

import pytest

TIMEOUT_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.rig)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))
