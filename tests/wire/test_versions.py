"""Two neighbouring versions understand each other: what one says the other reads, as far as it knows it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import msgpack
import pytest
import version_2.codec
import version_2.message
from blake3 import blake3
from hypothesis import given, settings
from older import carried
from structs import STRUCTS, sample, structs_of

from peerlm.errors import UnknownMessage, WireError
from peerlm.wire import codec, fields, message
from peerlm.wire.message import Gossip, Greeting, Message, Ping, Struct, Suspect
from peerlm.wire.versions import OLDEST_VERSION, PROTOCOL_VERSION, fits, misfit

OLD = {
    kind.__name__: kind
    for kind in vars(version_2.message).values()
    if isinstance(kind, type) and issubclass(kind, version_2.message.Struct) and kind.code
}
LETTERED = {("Welcome", "seen_host"), ("NodeRecord", "host")}
"""Fields whose letters were not looked at then: no host that could be dialled had others than are let in now."""

AS_IT_WAS = {
    "__init__.py": "ac0bce3cb67440345a0dd3897122cae3868811a3943acda34d9d6d730789258c",
    "bounds.py": "c20ab11a89150c390ac53d8d9c8dc3eaa43b888b44f0ee2e48f11ed141d1fd0f",
    "codec.py": "10a50eb95fdb0eb6c779a12978c8bef065ca440685473eb511e23e55eac344e9",
    "message.py": "bc3ae04ef3a06099cbf1b207fa31adc101c234d5b582e34a61320a264d445036",
}
"""BLAKE3 of each file of the version before."""

BOTH = [kind for kind in STRUCTS if kind.__name__ in OLD]


def shape(kind: type) -> list[tuple[str, str]]:
    """Its fields in order, with what each may hold."""
    hints = get_type_hints(kind, include_extras=True)
    text = [
        (f.name, str(unlettered(kind, f.name, hints[f.name]))) for f in dataclasses.fields(kind)
    ]
    return [(n, without_news(re.sub(r"(\w+\.)+(\w+)", r"\2", t))) for n, t in text]


def unlettered(kind: type, name: str, hint: Any) -> Any:
    """What a host may be, as the older had it, in the fields that were like that and no other."""
    is_lettered = hint == fields.Host and (kind.__name__, name) in LETTERED
    return version_2.message.Host if is_lettered else hint


def without_news(hint: str) -> str:
    """Rumors of kinds that were not there may come behind those that were."""
    new = [k.__name__ for k in get_args(message.Rumor) if k.__name__ not in OLD]
    for name in reversed(new):
        hint = hint.replace(f" | {name}, ...", ", ...")
    return hint


def test_the_version_before_is_never_edited() -> None:
    folder = Path(version_2.message.__file__).parent
    here = {path.name: blake3(path.read_bytes()).hexdigest() for path in folder.glob("*.py")}
    assert here == AS_IT_WAS, (
        f"{folder.name} is what nodes of that version run and is never edited: undo that; when "
        "wire/versions.py goes on, a folder of the next version takes its place"
    )


def test_the_version_before_is_the_oldest_that_is_spoken() -> None:
    assert version_2.message.PROTOCOL_VERSION == OLDEST_VERSION == PROTOCOL_VERSION - 1
    assert fits(OLDEST_VERSION)
    assert fits(PROTOCOL_VERSION + 5), "who is newer decides"
    assert not fits(OLDEST_VERSION - 1)
    assert f"protocol {OLDEST_VERSION - 1} there" in misfit(OLDEST_VERSION - 1)


@pytest.mark.parametrize("old", OLD.values(), ids=lambda k: k.__name__)
def test_what_was_is_as_it_was_and_what_is_new_comes_behind_it(old: type) -> None:
    new = getattr(message, old.__name__)
    assert new.code == old.code
    assert shape(new)[: len(shape(old))] == shape(old)
    added = dataclasses.fields(new)[len(shape(old)) :]
    assert all(f.default is not dataclasses.MISSING for f in added), "an added field has a default"


def test_no_number_means_something_else_now() -> None:
    known = {kind.code for kind in OLD.values()}
    assert not known & {kind.code for kind in STRUCTS if kind.__name__ not in OLD}


@pytest.mark.parametrize("kind", BOTH, ids=lambda k: k.__name__)
def test_the_older_reads_what_it_knows_of_what_the_newer_says(kind: type[Struct]) -> None:
    @settings(max_examples=25, deadline=None)
    @given(structs_of(kind))
    def scene(value: Struct) -> None:
        heard = version_2.codec.decode_as(OLD[kind.__name__], codec.encode(value))
        assert heard == carried(value, version_2.message)

    scene()


@pytest.mark.parametrize("kind", BOTH, ids=lambda k: k.__name__)
def test_the_newer_reads_what_the_older_says(kind: type[Struct]) -> None:
    @settings(max_examples=25, deadline=None)
    @given(structs_of(kind))
    def scene(value: Struct) -> None:
        said = carried(value, version_2.message)
        assert codec.decode_as(kind, version_2.codec.encode(said)) == carried(said, message)

    scene()


# ----------------------------------------------------- a version to come, as this one and the last see it


TOMORROW = 60_000
"""A number that nobody knows yet."""

READERS = {"today's": (codec, message), "the older": (version_2.codec, version_2.message)}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> tuple[ModuleType, ModuleType]:
    return READERS[request.param]


def raw(struct: Struct) -> list[Any]:
    unpacked = msgpack.unpackb(codec.encode(struct))
    assert isinstance(unpacked, list)
    return unpacked


def test_a_message_that_nobody_knows_is_passed_over_and_no_offence(
    reader: tuple[ModuleType, ModuleType],
) -> None:
    with pytest.raises(UnknownMessage):
        reader[0].decode(msgpack.packb([TOMORROW, "news", 3]))


def test_a_rumor_that_nobody_knows_leaves_the_others_to_be_heard(
    reader: tuple[ModuleType, ModuleType],
) -> None:
    rumors = raw(Gossip((sample(Suspect), sample(Suspect))))
    rumors[1].insert(1, [TOMORROW, "news", [1, 2]])
    heard = reader[0].decode(msgpack.packb(rumors))
    assert len(heard.rumors) == 2
    assert {type(rumor).__name__ for rumor in heard.rumors} == {"Suspect"}


def test_a_known_struct_where_no_rumor_belongs_is_an_offence(
    reader: tuple[ModuleType, ModuleType],
) -> None:
    rumors = raw(Gossip(()))
    rumors[1].append(raw(Ping(1, ())))
    with pytest.raises(WireError, match="unknown type"):
        reader[0].decode(msgpack.packb(rumors))


@pytest.mark.parametrize(
    "kind", [k for k in STRUCTS if issubclass(k, Message)], ids=lambda k: k.__name__
)
def test_additional_fields_are_not_read(kind: type[Message]) -> None:
    value = sample(kind)
    assert codec.decode(msgpack.packb([*raw(value), "more", [1, [2]]])) == value


def test_a_field_that_an_older_node_does_not_send_has_its_default() -> None:
    greeting = raw(sample(Greeting))
    assert codec.decode(msgpack.packb(greeting[:-1])).software == ""
    with pytest.raises(WireError, match="fields, must be at least"):
        codec.decode(msgpack.packb(greeting[:-2]))
