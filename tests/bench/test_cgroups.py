"""What a program leaves of its groups is taken away, and nothing else."""

from __future__ import annotations

from pathlib import Path

from peerlm.bench.cgroups import swept


def test_groups_that_came_meanwhile_go_and_all_others_stay(tmp_path: Path) -> None:
    (tmp_path / "pids/docker/of-somebody").mkdir(parents=True)
    (tmp_path / "memory").mkdir()
    with swept("docker", root=tmp_path):
        for path in ("memory/docker/a/b", "docker/c", "memory/other", "cpu/docker"):
            (tmp_path / path).mkdir(parents=True)
        (tmp_path / "cpu/docker/busy").touch()  # as a group with processes: it cannot be removed
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {
        *("pids", "pids/docker", "pids/docker/of-somebody", "memory", "memory/other"),
        *("cpu", "cpu/docker", "cpu/docker/busy"),
    }
