"""Words between daemon and worker: whole however they arrive, refused when they are not ours."""

from __future__ import annotations

import math
import subprocess
import sys

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.config import NodeSettings, Plan, preset, with_changes
from peerlm.errors import ConfigError, WireError
from peerlm.train import protocol
from peerlm.train.protocol import Frames, Message
from peerlm.types import FragmentId, PeerId

ONE_OF_EACH: list[Message] = [
    protocol.Setup(
        3, True, PeerId(b"p" * 16), b"plan", b"settings", ("/a/shard", "/b/ß"), 2, passes=b"read"
    ),
    protocol.Steer(True, 1 << 40, 1 << 41, (PeerId(b"a" * 16), PeerId(b"b" * 16)), 20),
    protocol.Steer(
        True,
        1 << 40,
        1 << 41,
        (PeerId(b"a" * 16),),
        20,
        (PeerId(b"b" * 16),),
        (1,),
        (2,),
        b"read",
        (0.05,),
    ),
    protocol.Setup(
        3, False, PeerId(b"p" * 16), b"plan", b"settings", ("/a", "/b"), 2, b"", 0, 1, (1,)
    ),
    protocol.Shards((1, 4, 40)),
    protocol.Shards(()),
    protocol.ServeSetup(
        PeerId(b"p" * 16), b"plan", "/var/lib/peerlm", 1, 2, 32, 4, 1 << 30, "cuda:1"
    ),
    protocol.Hosts(
        PeerId(b"p" * 16),
        (PeerId(b"a" * 16), PeerId(b"b" * 16)),
        (0, 1),
        (0, 2),
        (PeerId(b"b" * 16),),
        (0.02, 0.0),
        (0.1, 0.3),
    ),
    protocol.Hop(PeerId(b"a" * 16), b"stream"),
    protocol.Served(3, 1 << 40, 2),
    protocol.Nonsense(PeerId(b"a" * 16), "hop: kind is not what it can be"),
    protocol.Correction(FragmentId(2), 9, protocol.RESET),
    protocol.BoundaryTaken(FragmentId(0)),
    protocol.Evaluate(),
    protocol.Keep(),
    protocol.Drain(),
    protocol.Stop(),
    protocol.Initialised(),
    protocol.Ready("cpu", 2, "", (1e5, 0.0, 2.5, 3.0, 4.0)),
    protocol.Ready("cuda:0", 4),
    protocol.Boundary(FragmentId(1), 9, 500),
    protocol.Applied(FragmentId(1), 9),
    protocol.Progress(10, 20480, None, 1e5, 1),
    protocol.Progress(
        10,
        20480,
        2.5,
        1e5,
        1,
        3,
        4,
        5,
        0.25,
        (b"t" * 32, b"u" * 32),
        (900, 40),
        (0, 7, 21, 1, 7, 22),
        (0, 7, 23, 4),
        b"order",
        True,
        1.5e5,
    ),
    protocol.Evaluated(5.5, 3_100.0),
    protocol.Evaluated(5.5, None, (5.0, 6.0)),
    protocol.Ready("cpu", 1, "goes on from what was kept"),
    protocol.Kept(0.5),
    protocol.Kept(0.0, "the disk is full"),
    protocol.Drained(),
    protocol.Failed("DeviceLost: gone"),
]


def body(*values: object) -> bytes:
    return bytes(msgpack.packb(values))


def test_the_examples_cover_every_message() -> None:
    assert {type(message) for message in ONE_OF_EACH} == set(protocol.kinds().values())


@given(st.data())
def test_messages_survive_any_cutting_of_the_stream(data: st.DataObject) -> None:
    stream = b"".join(map(protocol.frame, ONE_OF_EACH))
    frames, received = Frames(), []
    while stream:
        size = data.draw(st.integers(1, 200))
        received += frames.feed(stream[:size])
        stream = stream[size:]
    assert received == ONE_OF_EACH


def test_a_loss_that_is_no_number_is_still_reported() -> None:
    (back,) = Frames().feed(protocol.frame(protocol.Evaluated(math.nan, None)))
    assert isinstance(back, protocol.Evaluated)
    assert math.isnan(back.val_loss)


@pytest.mark.parametrize(
    ("foreign", "complaint"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (body(), "unknown message"),
        (body("Explode"), "unknown message"),
        (body({}), "unknown message"),
        (bytes(msgpack.packb({"Drain": 1})), "unknown message"),
        (body("Drain", 1), "Drain of 1 fields, not 0"),
        (body("Applied", 1), "Applied of 1 fields, not 2"),
        (body("Applied", 1, -1), "Applied.seq = -1"),
        (body("Applied", True, 1), "Applied.fragment = True"),
        (body("Ready", b"cpu", 1, "", ()), "Ready.device"),
        (body("Evaluated", 1, None, ()), "Evaluated.val_loss"),
        (body("Evaluated", None, None, ()), "Evaluated.val_loss"),
        (body("Evaluated", 1.5, "many", ()), "Evaluated.noise_scale"),
        (body("Evaluated", 1.5, None, (1,)), "Evaluated.val_losses"),
        (body("Steer", 1, 0, 1, (), 20, (), (), (), b"", ()), "Steer.training"),
        (body("Steer", True, 0, 1, ("text",), 20, (), (), (), b"", ()), "Steer.members"),
    ],
)
def test_what_is_no_message_is_refused(foreign: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        protocol.decode(foreign)


def test_an_unknown_message_that_cannot_be_a_key_is_refused() -> None:
    with pytest.raises(WireError, match="unknown message"):
        protocol.decode(body([["nested"]]))


def test_an_absurd_length_is_refused_before_anything_is_kept() -> None:
    with pytest.raises(WireError, match="4294967295 bytes"):
        Frames().feed(b"\xff\xff\xff\xff")


@given(st.binary(max_size=60))
def test_noise_never_does_worse_than_a_wire_error(noise: bytes) -> None:
    try:
        protocol.decode(noise)
    except WireError:
        pass


def test_settings_arrive_as_they_were() -> None:
    plan = with_changes(preset("small"), {"data.shards": ["ab" * 32]}, "here")
    assert protocol.unpacked(Plan, protocol.packed(plan)) == plan
    assert protocol.unpacked(NodeSettings, protocol.packed(NodeSettings())) == NodeSettings()


def test_the_daemon_can_read_it_without_torch() -> None:
    program = "import sys; import peerlm.train.protocol, peerlm.train.shared; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_lists_in_lists_are_no_message_and_no_other_error() -> None:
    for depth in (2, 900, 1010, 1023, 5000):
        with pytest.raises(WireError):
            protocol.decode(b"\x91" * depth + b"\x00")


def test_settings_that_are_none_are_refused() -> None:
    for data in (b"", b"\xc1", b"\x91" * 2000, b"\x93\x01\x02\x03", b"\x81\xa3run\x01"):
        with pytest.raises(ConfigError):
            protocol.unpacked(Plan, data)
