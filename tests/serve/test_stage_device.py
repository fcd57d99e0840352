"""A stage server answers on the device that its node trains on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ring_scene import Host, staged
from serve_scene import KINDS, model_of, plan_of

from peerlm.errors import DeviceLost
from peerlm.model.stages import held_parameters
from peerlm.serve.engine import _tensors
from peerlm.serve.guests import cache_of
from peerlm.serve.route import Turn
from peerlm.serve.stage_server import VERSIONS_MAX
from peerlm.train import device as devices


def host_on(device: str, kind: str = "hybrid", cache_bytes: int = 1 << 30) -> Host:
    plan = staged(plan_of(kind), 2)
    return Host(plan, model_of(plan), "h", 0, 1, cache_bytes=cache_bytes, device=device)


def places(host: Host) -> Iterator[tuple[str, str]]:
    """The devices of weights, and of what is remembered."""
    assert host.server._guests is not None
    weights = host.server._guests.version.held._part.parameters()
    kept = _tensors(host.server._slots.parts)
    for weight in weights:
        yield "weights", weight.device.type
    for tensor in kept:
        yield "kept", tensor.device.type


@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta: there everywhere, and not the processor
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_what_is_remembered_lie_on_the_device(kind: str, device: str) -> None:
    assert set(places(host_on(device, kind))) == {("weights", device), ("kept", device)}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_made_on_the_device_and_end_on_the_host(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    came: list[str] = []

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        came.append(tensor.device.type)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    guests = host_on("meta", kind).server._guests
    assert guests is not None
    held = guests.version.held
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    turns = [Turn(0, 0, (1, 2, 3)), Turn(2, 0, (4,) * 5), Turn(4, 0, (1,)), Turn(5, 0, (6,))]
    stream = held.advance(turns, held.advance(turns, None, 0, 0), 1, 1)
    assert stream.shape == (10, 32)
    assert held.logits(stream[:2]).shape == (2, 256)
    assert set(came) == {"meta"}


def test_auto_is_what_it_is_for_the_worker() -> None:
    found = {place for _, place in places(host_on("auto"))}
    assert found == {devices.choose_device("auto").type}


def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DeviceLost, match="cuda:99"):
        host_on("cuda:99")


WEIGHTS = 4 * held_parameters(staged(plan_of("hybrid"), 2), range(2))


@pytest.mark.parametrize(
    ("free", "device"), [(3 * WEIGHTS, "meta"), (VERSIONS_MAX * WEIGHTS, "cpu"), (0, "cpu")]
)
def test_room_for_texts_is_a_share_of_what_is_free_on_the_device_if_weights_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free: int, device: str
) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda _: free)
    of_host = 1 << 20
    host = host_on("meta", cache_bytes=of_host)
    assert {place for _, place in places(host)} == {device}
    one = host.server._slots.bytes // host.server._slots.count
    room = cache_of(free) if device == "meta" else of_host
    assert host.server._slots.count == min(32, room // one)
    assert ("on the processor" in capsys.readouterr().err) == (device == "cpu")
