"""The absences that hold the house up (ARCHITECTURE.md), read from imports and syntax trees.

A rule here is about what a room of the package may know. When a change breaks one, either the change is
in the wrong room, or the rule is wrong and ARCHITECTURE.md changes with this file.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "peerlm"
FILES = sorted(PACKAGE.rglob("*.py"))
LINES_MAX = 700

WORDS = {"types", "errors", "config"}
"""Rooms that everybody may know."""

GGUF_READERS = {"accelerate", "gguf", "transformers"}

ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "types": (set(), set()),
    "errors": (set(), set()),
    "config": (set(), set()),
    "identity": ({"store"}, {"blake3", "cryptography", "msgpack"}),
    "wire": (set(), {"blake3", "cryptography", "msgpack", "numpy"}),
    "events": ({"wire"}, set()),
    "effects": ({"wire"}, set()),
    "membership": ({"wire", "events", "effects"}, set()),
    "swarm": ({"wire", "membership", "model.stages"}, set()),
    "data": (
        {"store"},
        {"blake3", "fsspec", "numpy", "tokenizers"}
        | {"aiohttp", "backports", "chardet", "compression", "datasketch", "pyarrow"},
    ),
    "model": ({"store"}, {"numpy", "safetensors", "tomlkit", "torch", *GGUF_READERS}),
    "train": ({"data", "model"}, {"msgpack", "numpy", "torch"}),
    "mix": ({"wire", "events", "effects", "swarm"}, {"numpy"}),
    "store": ({"wire"}, {"blake3", "numpy", "safetensors"}),
    "node": (
        {"wire", "events", "effects", "identity", "membership", "swarm", "mix", "store"}
        | {"data.extents", "data.passes", "data.records", "model.stages"},
        set(),
    ),
    "observe": (set(), {"prometheus_client"}),
    "filesystem": ({"store", "cli.nodes_here", "daemon.desk_client"}, {"fsspec"}),
    "serve": (
        {"data", "model", "observe", "store"}
        | {"train.channel", "train.device", "train.limits", "train.protocol"},
        {"aiohttp", "blake3", "msgpack", "numpy", "prometheus_client", "torch", "uvloop"},
    ),
    "sim": (
        {"wire", "events", "effects", "identity", "membership", "swarm", "mix", "store", "node"}
        | {"model.stages", "train.batch_round", "train.cadence", "train.routes", "train.schedule"},
        {"numpy"},
    ),
}
"""Room → (other rooms or modules of them, third parties) it may import, besides WORDS. `daemon`, `bench` and `cli` may
import what they like, but for what stands below."""

DRIVERS = {"daemon", "cli", "bench", "chaos", "launch", "__main__", "__init__"}
WITH_CLOCKS = {"daemon", "cli", "bench", "chaos", "filesystem", "launch", "train"}

RIVALS = "bench/rivals"
"""Scripts that run with another interpreter and know nothing of us."""

DAEMONS = {PACKAGE / "bench" / name for name in ("member.py", "telling.py")}
"""The daemon in a process that mixes when told to, or tells what it sees: they have the daemon's loop."""

SERVING = {
    PACKAGE / "serve" / name
    for name in ("driver.py", "http.py", "stage_server.py", "stage_weights.py", "swarm.py")
}
"""Answers go over sockets of their own, texts advance in a thread or process of their own and by way of the daemon; the rest
of the room is pure but for the engine."""

MAKERS = PACKAGE / "data" / "making.py"
"""Tokens are made by processes of its own; what one of them does is pure but for reading."""

ENGINE = PACKAGE / "serve" / "engine.py"

LOCKS = {PACKAGE / "store" / "flushes.py", PACKAGE / "filesystem.py"} | {
    PACKAGE / "store" / name for name in ("disk.py", "shelf.py", "room.py")
}
"""They are used from many threads, and make none."""

NETWORKS = {PACKAGE / "bench" / name for name in ("lines.py", "namespaces.py")}
"""They open what the kernel shows as files."""

CLOCKS = {
    *("time.time", "time.monotonic", "time.perf_counter", "time.time_ns", "time.monotonic_ns"),
    *("time.sleep", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
TOOLS = ("tensorboard", "wandb")
LIGHT_DAEMON = (
    *("torch", "rich", "click", "textual", "fsspec", "tokenizers", "safetensors.torch", "aiohttp"),
)
LIGHT_CLI = ("torch", "rich", "textual", "numpy", "zmq", "cryptography", "peerlm.daemon.main")


def test_every_room_imports_only_what_its_place_allows() -> None:
    wrong = []
    for path in FILES:
        room = room_of(path)
        if room in DRIVERS:
            continue
        assert room in ROOMS, f"a new room {room}: give it a place in ARCHITECTURE.md and here"
        rooms, parties = ROOMS[room]
        for name in imported_by(path):
            first, *rest = name.split(".")
            if first == "peerlm":
                known = not rest or not {rest[0], ".".join(rest[:2])}.isdisjoint(
                    {room, *WORDS, *rooms}
                )
            else:
                known = first in sys.stdlib_module_names or first in parties
            if not known:
                wrong.append(f"{shown(path)} imports {name}")
    assert wrong == []


def test_the_loop_and_sockets_are_the_daemons_alone() -> None:
    for path in FILES:
        if room_of(path) != "daemon" and path not in DAEMONS | SERVING:
            firsts = {name.split(".")[0] for name in imported_by(path)}
            assert not firsts & {"asyncio", "zmq", "uvloop", "selectors"}, shown(path)
            if room_of(path) not in {"cli", "bench", "chaos", "launch", "train"} and path != MAKERS:
                banned = {"socket", "subprocess", "threading", "multiprocessing"}
                if path in LOCKS:
                    banned -= {"threading"}
                assert not firsts & banned, shown(path)


def test_torch_is_named_only_where_models_are_made_and_trained() -> None:
    for path in FILES:
        if room_of(path) not in {"model", "train"} and path != ENGINE and RIVALS not in shown(path):
            firsts = {name.split(".")[0] for name in imported_by(path)}
            assert "torch" not in firsts, shown(path)


def test_a_tool_that_gets_curves_is_known_to_the_writer_that_is_named_after_it_alone() -> None:
    for tool in TOOLS:
        knowing = [path for path in FILES if tool in {n.split(".")[0] for n in imported_by(path)}]
        assert knowing == [PACKAGE / "daemon" / "writers" / f"{tool}.py"]


def test_ray_is_named_only_where_nodes_are_placed_by_it() -> None:
    for path in FILES:
        if path != PACKAGE / "launch" / "on_ray.py":
            assert "ray" not in {name.split(".")[0] for name in imported_by(path)}, shown(path)


def test_what_reads_gguf_is_named_only_where_it_is_turned_into_a_folder() -> None:
    for path in FILES:
        if path != PACKAGE / "model" / "gguf.py":
            firsts = {name.split(".")[0] for name in imported_by(path)}
            assert not firsts & GGUF_READERS, shown(path)


def test_nobody_imports_the_command_line_but_itself_and_what_it_starts() -> None:
    for path in FILES:
        if room_of(path) == "filesystem":  # it finds the node as commands do
            continue
        if room_of(path) not in {"cli", "bench", "chaos", "launch", "__main__"}:
            assert not [n for n in imported_by(path) if n.startswith("peerlm.cli")], shown(path)


def test_benchmarks_are_the_command_lines_alone_and_rivals_are_nobodys() -> None:
    for path in FILES:
        names = imported_by(path)
        if room_of(path) not in {"cli", "bench", "chaos"}:
            assert not [n for n in names if n.startswith("peerlm.bench")], shown(path)
        assert not [n for n in names if n.startswith("peerlm.bench.rivals")], shown(path)
        if RIVALS in shown(path):
            assert not [n for n in names if n.startswith("peerlm")], shown(path)


@pytest.mark.parametrize(
    "room", ["identity", "wire", "membership", "swarm", "mix", "store", "node", "sim"]
)
def test_no_core_reaches_a_driver_or_torch_through_others(room: str) -> None:
    allowed = {f"peerlm.{name}" for name in ROOMS[room][0] if "." in name}
    for path in (p for p in FILES if room_of(p) == room):
        for module in reached_from(module_of(path)) - allowed:
            assert not module.startswith(
                ("peerlm.daemon", "peerlm.cli", "peerlm.train", "torch")
            ), f"{shown(path)} reaches {module}"
            assert module.split(".")[0] not in {"asyncio", "zmq", "fsspec"}, (
                f"{shown(path)} reaches {module}"
            )


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("peerlm.daemon.main", (*LIGHT_DAEMON, *TOOLS)),
        ("peerlm.daemon.writers.process", (*LIGHT_DAEMON, *TOOLS, "numpy", "peerlm.daemon.main")),
        ("peerlm.cli.main", LIGHT_CLI),
        ("peerlm.cli.top", ("torch", "textual")),
        ("peerlm.model", ("torch",)),
        ("peerlm.filesystem", ("torch", "numpy", "zmq", "cryptography", "peerlm.node")),
        ("peerlm.serve.http", ("torch",)),
        ("peerlm.train.protocol", ("torch",)),
        ("peerlm.train.worker", ("torch",)),
    ],
)
def test_importing_stays_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(m for m in {absent!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --------------------------------------------------------------------- what code may look at


def test_clocks_are_read_only_where_there_is_one() -> None:
    for path in FILES:
        if room_of(path) not in WITH_CLOCKS and path not in SERVING:
            assert "time" not in imported_by(path), shown(path)
            assert not CLOCKS & names_in(path), shown(path)


def test_the_environment_is_read_only_by_drivers() -> None:
    for path in FILES:
        if room_of(path) not in WITH_CLOCKS:
            assert not ENVIRONMENT & names_in(path), shown(path)


def test_chance_comes_from_an_rng_that_was_handed_in() -> None:
    for path in FILES:
        if room_of(path) in DRIVERS:
            continue
        names = names_in(path)
        drawn = {n for n in names if n.startswith("random.")} - {"random.Random"}
        assert not drawn, f"{shown(path)}: {drawn}"
        assert not {"uuid.uuid4", "secrets.token_bytes", "np.random.seed"} & names, shown(path)
        assert not list(unseeded_generators(path)), shown(path)
        if room_of(path) != "identity":  # there it is the default of an argument
            assert "os.urandom" not in names, shown(path)


def test_files_are_opened_only_by_rooms_that_keep_them() -> None:
    keepers = {"identity", "data", "store", "daemon", "cli"}
    for path in FILES:
        if room_of(path) not in keepers and path not in NETWORKS:
            assert not {"open", "os.open"} & calls_in(path), shown(path)


def test_nothing_that_arrives_can_be_run() -> None:
    for path in FILES:
        firsts = {name.split(".")[0] for name in imported_by(path)}
        assert not firsts & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, shown(path)
        assert not {"eval", "exec", "compile", "__import__"} & calls_in(path), shown(path)
        assert "torch.load" not in names_in(path), shown(path)


# --------------------------------------------------------------------------------- its shape


def test_no_file_is_too_long() -> None:
    long = {shown(p): n for p in FILES if (n := len(p.read_text().splitlines())) > LINES_MAX}
    assert long == {}


def test_every_file_opens_with_its_idea() -> None:
    for path in FILES:
        assert ast.get_docstring(tree(path)), f"{shown(path)} has no docstring"


def test_nothing_is_left_for_later() -> None:
    for path in FILES:
        assert "NotImplementedError" not in names_in(path), shown(path)
        text = path.read_text()
        assert not [w for w in ("TODO", "FIXME", "XXX") if w in text], shown(path)


# --------------------------------------------------------------------------------- reading code


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def shown(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def room_of(path: Path) -> str:
    """The folder under peerlm/, or the name of a file that lies there itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported_by(path: Path) -> frozenset[str]:
    """Every module that the file imports anywhere; for `from peerlm import x` also peerlm.x."""
    return frozenset(_imports(ast.walk(tree(path))))


def _imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str() as module, names=names):
                yield module
                if module == "peerlm":
                    yield from (f"peerlm.{n.name}" for n in names if n.name != "__version__")


def _at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when a module is imported; not those for type checkers alone."""
    for node in body:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.If() | ast.Try() | ast.With() | ast.ClassDef():
                yield from _at_import(node.body)
            case _:
                yield node


@cache
def reached_from(module: str) -> frozenset[str]:
    """All modules that importing this one imports, as far as they are ours, and their others."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = PACKAGE.parent / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.exists():
            for found in _imports(_at_import(tree(file).body)):
                if found not in reached:
                    reached.add(found)
                    waiting.append(found)
    return frozenset(reached)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names and dotted names (`a.b`) that the file's code uses, imports by `from` resolved."""
    origin = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = set()
    for node in ast.walk(tree(path)):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=attr):
                names.add(f"{owner}.{attr}")
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id=owner), attr=a), attr=b):
                names.add(f"{owner}.{a}.{b}")
            case ast.Name(id=name):
                names.add(origin.get(name, name))
    return frozenset(names)


@cache
def calls_in(path: Path) -> frozenset[str]:
    """What the file calls by a plain or a dotted name; methods of objects have dots too."""
    calls = set()
    for node in ast.walk(tree(path)):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                calls.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=attr)):
                calls.add(f"{owner}.{attr}")
    return frozenset(calls)


def unseeded_generators(path: Path) -> Iterator[str]:
    """Calls of `default_rng()` or `Random()` without a seed."""
    for node in ast.walk(tree(path)):
        match node:
            case ast.Call(func=ast.Attribute(attr="default_rng" | "Random" as name), args=[]):
                yield name
