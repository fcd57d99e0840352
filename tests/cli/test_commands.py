"""Every other command, through `main`: what it says, what it asks the daemon, how it fails."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_scene import SMALL, Cli, FakeDaemon, answer_of, assert_one_line, member, sample_summary

from peerlm.cli import desk_here
from peerlm.cli.main import COMMANDS
from peerlm.cli.plan import current_plan
from peerlm.cli.state import read_run
from peerlm.data.shards import corpus_manifest, shard_bytes, shard_fact
from peerlm.errors import ConfigError
from peerlm.identity import files
from peerlm.identity.invite import enrol, make_invite, parse_token, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.revocation import verify_revocation
from peerlm.identity.root import verify_plan
from peerlm.store.disk import Layout, StateDirectory
from peerlm.store.manifest import Manifest
from peerlm.types import Role, WallTime

JOIN_LINE = re.compile(r"peerlm join tcp://(\S+) --token (peerlm1-[A-Za-z0-9_-]+)\n")


# ------------------------------------------------------------------------------------- in all


@pytest.mark.parametrize("command", [*COMMANDS, "plan show", "plan set", "root export"])
def test_help_has_an_example_and_fits_a_screen(peerlm: Cli, command: str) -> None:
    outcome = peerlm(*command.split(), "--help")
    assert outcome.code == 0
    assert "Example" in outcome.out
    assert f"peerlm {command}" in outcome.out
    assert len(outcome.out.splitlines()) < 60


def test_the_command_alone_explains_itself(peerlm: Cli) -> None:
    listed = peerlm("--help").out
    assert all(f"  {command} " in listed for command in COMMANDS)


def test_an_unknown_command_or_option_is_code_2(peerlm: Cli) -> None:
    assert peerlm("fly").code == 2
    assert peerlm("status", "--loudly").code == 2


@pytest.mark.parametrize(
    "command",
    [
        *("up", "invite", "status", "peers", "why", "pause", "resume", "stop", "leave", "logs"),
        *(
            "rm",
            "plan show",
            "plan set a.b=1",
            "generate x",
            "export d",
            "revoke 01",
            "root export f",
        ),
    ],
)
def test_without_a_node_every_command_says_how_to_make_one(
    peerlm: Cli, tmp_path: Path, command: str
) -> None:
    outcome = peerlm(*command.split(), "--state", tmp_path / "nothing")
    assert_one_line(outcome, 3, "no node in", "peerlm init", "peerlm join")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("command", ["status", "peers", "why", "pause", "resume", "stop", "leave"])
def test_without_a_daemon_they_say_how_to_start_it(
    peerlm: Cli, founded: Path, command: str
) -> None:
    assert_one_line(peerlm(command, "--state", founded), 3, "no peerlm daemon", "`peerlm up`")


def test_a_damaged_chain_is_one_line(peerlm: Cli, founded: Path) -> None:
    Layout(founded).chain.write_bytes(b"rubbish")
    assert_one_line(peerlm("plan", "show", "--state", founded), 3, "chain", "damaged")


# ------------------------------------------------------------------- which folder, in which order


def test_the_folder_is_the_option_then_the_environment_then_the_users(
    peerlm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"no node in {tmp_path}/xdg/peerlm:" in peerlm("why").err
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/systemd:/other")
    assert f"no node in {tmp_path}/systemd:" in peerlm("why").err
    monkeypatch.setenv("PEERLM_STATE", str(tmp_path / "env"))
    assert f"no node in {tmp_path}/env:" in peerlm("why").err
    assert f"no node in {tmp_path}/opt:" in peerlm("why", "--state", tmp_path / "opt").err


# ------------------------------------------------------------------------------------- invite


def test_an_invite_is_one_line_alone_with_a_token_that_enrols(
    peerlm: Cli, daemon: FakeDaemon
) -> None:
    outcome = peerlm("invite", "--state", daemon.layout.root)
    line = JOIN_LINE.fullmatch(outcome.out)
    assert line, outcome.out
    token = parse_token(line[2])
    assert line[1] == "10.0.0.1:7700"
    assert token.addresses == ("10.0.0.1:7700",)  # the other member is dead
    assert token.run_id == read_run(daemon.layout).run_id
    assert Role.INVITE not in token.inviter.authority().roles
    assert token.inviter.authority().serials[-1].hex() in outcome.err


def test_an_invite_names_other_living_members_as_doors_too(peerlm: Cli, daemon: FakeDaemon) -> None:
    daemon.answers["status"] = answer_of(sample_summary(members=(member(1), member(2))))
    line = JOIN_LINE.fullmatch(peerlm("invite", "--state", daemon.layout.root).out)
    assert line
    assert parse_token(line[2]).addresses == ("10.0.0.1:7700", "10.0.0.2:7700")


def test_a_node_that_nobody_can_dial_invites_through_the_others(
    peerlm: Cli, daemon: FakeDaemon
) -> None:
    daemon.answers["status"] = answer_of(
        sample_summary(address="", members=(member(1, address=""), member(2)))
    )
    line = JOIN_LINE.fullmatch(peerlm("invite", "--state", daemon.layout.root).out)
    assert line
    assert line[1] == "10.0.0.2:7700"
    daemon.answers["status"] = answer_of(sample_summary(address="", members=()))
    alone = peerlm("invite", "--state", daemon.layout.root)
    assert_one_line(alone, 2, "nobody can dial this node", "--address")


def test_without_a_daemon_the_address_is_that_of_node_toml(peerlm: Cli, founded: Path) -> None:
    Layout(founded).node_settings.write_text('[network]\nadvertise = "gate.example.org"\n')
    assert "tcp://gate.example.org:7700 " in peerlm("invite", "--state", founded).out
    Layout(founded).node_settings.write_text('[network]\nadvertise = "2001:db8::1"\n')
    assert "tcp://[2001:db8::1]:7700 " in peerlm("invite", "--state", founded).out
    Layout(founded).node_settings.write_text("[network]\nport = 0\n")
    assert_one_line(peerlm("invite", "--state", founded), 2, "network.port = 0", "--address")


def test_roles_and_dates_are_those_asked_for(peerlm: Cli, founded: Path) -> None:
    options = ("--role", "observe,store", "--role", "invite", "--enrol-until", "2h")
    outcome = peerlm("invite", "--state", founded, *options, "--address", "h:1")
    line = JOIN_LINE.fullmatch(outcome.out)
    assert line
    authority = parse_token(line[2]).inviter.authority()
    assert authority.roles == {Role.OBSERVE, Role.STORE, Role.INVITE}
    assert 0 < authority.certs_until - authority.enrol_until - 364 * 86_400 < 86_400


@pytest.mark.parametrize(
    "options", [("--role", "boss"), ("--enrol-until", "soon"), ("--certs-until", "7")]
)
def test_wrong_roles_and_times_are_named(
    peerlm: Cli, founded: Path, options: tuple[str, ...]
) -> None:
    outcome = peerlm("invite", "--state", founded, *options)
    assert outcome.code == 2
    assert options[1] in outcome.err


def test_a_delegate_invites_with_its_own_key_and_others_may_not(peerlm: Cli, founded: Path) -> None:
    (founded / "root").unlink()
    assert peerlm("invite", "--state", founded, "--address", "h:1").code == 0
    (founded / "inviter").unlink()
    assert_one_line(peerlm("invite", "--state", founded), 2, "may not invite", "peerlm root import")


# --------------------------------------------------------------------------------------- join


def test_join_wants_a_token(peerlm: Cli, tmp_path: Path) -> None:
    outcome = peerlm("join", "tcp://h:1", "--state", tmp_path / "n")
    assert outcome.code == 2
    assert "a token is needed" in outcome.err


def test_join_names_a_token_file_it_cannot_read(peerlm: Cli, tmp_path: Path) -> None:
    missing = tmp_path / "t"
    options = ("--state", tmp_path / "n", "--token-file", missing)
    assert_one_line(peerlm("join", "h", *options), 2, str(missing), "No such file")


def test_join_does_not_touch_a_node_that_is_there(peerlm: Cli, founded: Path) -> None:
    outcome = peerlm("join", "h", "--token", "peerlm1-x", "--state", founded)
    assert_one_line(outcome, 3, "already holds a node", "`peerlm up` starts it")


def test_a_token_that_was_cut_short_is_refused_and_leaves_nothing(
    peerlm: Cli, founded: Path, tmp_path: Path
) -> None:
    line = JOIN_LINE.fullmatch(peerlm("invite", "--state", founded, "--address", "h:1").out)
    assert line
    outcome = peerlm("join", "h:1", "--token", line[2][:-9], "--state", tmp_path / "n")
    assert_one_line(outcome, 4, "cut short")
    assert line[2][20:-9] not in outcome.err
    assert not (tmp_path / "n").exists()


@pytest.mark.net
@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", ("connect", "refused")), ("no-such-host.invalid", ("resolve",))],
)
def test_an_address_that_cannot_be_reached_says_at_which_step(
    peerlm: Cli, founded: Path, tmp_path: Path, address: str, words: tuple[str, ...]
) -> None:
    line = JOIN_LINE.fullmatch(peerlm("invite", "--state", founded, "--address", "h:1").out)
    assert line
    outcome = peerlm("join", address, "--token", line[2], "--state", tmp_path / "n")
    assert_one_line(outcome, 5, *words)
    assert not (tmp_path / "n").exists()


def test_join_checks_settings_before_it_goes_out(peerlm: Cli, tmp_path: Path) -> None:
    options = ("--token", "x", "--set-node", "limits.threads=-1", "--state", tmp_path / "n")
    assert_one_line(peerlm("join", "h", *options), 2, "limits.threads = -1", "0 to 4096")


@pytest.mark.parametrize("host", ["ada:7700", "a b", "", "tcp://ada"])
def test_what_is_advertised_is_a_host_alone(peerlm: Cli, tmp_path: Path, host: str) -> None:
    options = ("--token", "x", "--advertise", host, "--state", tmp_path / "n")
    assert_one_line(peerlm("join", "h", *options), 2, "--advertise", "a host without a port")
    up = peerlm("up", "--advertise", host, "--state", tmp_path / "n")
    assert_one_line(up, 2, "--advertise", "a host without a port")


# --------------------------------------------------------------------------------------- plan


def test_plan_show_is_toml_that_means_the_plan(peerlm: Cli, founded: Path) -> None:
    from peerlm.config import Plan, read_toml

    plan = current_plan(Layout(founded)).plan
    for options in ((), ("--explain",)):
        assert (
            read_toml(Plan, peerlm("plan", "show", "--state", founded, *options).out, "t") == plan
        )
    whole = json.loads(peerlm("plan", "show", "--json", "--state", founded).out)
    assert whole["revision"] == 1
    assert whole["plan"]["model"]["dim"] == 16


def test_plan_set_hands_the_next_revision_to_the_daemon(peerlm: Cli, daemon: FakeDaemon) -> None:
    outcome = peerlm("plan", "set", "run.token_budget=7", "--state", daemon.layout.root)
    assert outcome.code == 0, outcome
    here = read_run(daemon.layout)
    (args,) = [args for command, args in daemon.asked if command == "new_plan"]
    assert "the run ends" in outcome.err, "the swarm is beyond it"
    signed = verify_plan(bytes.fromhex(args["plan"]), here.root_public_key, here.run_id)
    assert (signed.revision, signed.plan.run.token_budget) == (2, 7)
    assert current_plan(daemon.layout).revision == 1, "the daemon writes it, not we"


def test_plan_set_without_a_daemon_writes_it(peerlm: Cli, founded: Path) -> None:
    assert peerlm("plan", "set", "train.lr=0.5", "--state", founded).code == 0
    signed = current_plan(Layout(founded))
    assert (signed.revision, signed.plan.train.lr) == (2, 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.dim=32", ("model.dim", "another run")),
        ("mix.fragment_max=5000", ("mix.fragment_max",)),
        ("data.vocab=300", ("data.vocab",)),
        ("data.source=texts/", ("only go on with text in its own store", "swarm:NAME")),
        ("run.name=x", ("run.name",)),
        ("train.lr=-1", ("train.lr = -1.0",)),
        ("train.batch=100_000_000", ("shorter than one batch", "tokens to train on")),
        ("data.val_fraction=0.000001", ("shorter than one batch of validation",)),
        ("train.rate=1", ("no field 'train.rate'",)),
        ("run.token_budget=4_000_000", ("nothing is changed",)),
    ],
)
def test_plan_set_refuses_what_a_living_run_cannot_do(
    peerlm: Cli, founded: Path, change: str, words: tuple[str, ...]
) -> None:
    assert_one_line(peerlm("plan", "set", change, "--state", founded), 2, *words)


class Desk:
    """Stands in for a daemon that has one corpus in the store."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def manifest(self, name: str) -> Manifest:
        assert name == "laws"
        return self._manifest


def test_plan_set_takes_hashes_and_sizes_of_shards_from_the_store(
    peerlm: Cli, founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [np.arange(n, dtype=np.uint16) % 256 for n in (5000, 5000, 70)]
    facts = [shard_fact(shard_bytes(ids, 256), len(ids)) for ids in pieces]
    manifest, _ = corpus_manifest(facts, None, 256, documents=3)
    monkeypatch.setattr(desk_here, "open_desk", lambda layout: Desk(manifest))
    change = "data.source=swarm:laws"
    assert peerlm("plan", "set", change, "--state", founded).code == 0
    data = current_plan(Layout(founded)).plan.data
    assert data.shards == tuple(fact.hash.hex() for fact in facts)
    assert data.shard_tokens == (5000, 5000, 70)

    wrong = replace(manifest, meta={**manifest.meta, "tokens": 10_071})
    monkeypatch.setattr(desk_here, "open_desk", lambda layout: Desk(wrong))
    words = ("10071 tokens", "room for 10070")
    assert_one_line(peerlm("plan", "set", change, "--state", founded), 2, *words)


def test_plan_set_without_the_root_key_says_where_to_go(peerlm: Cli, founded: Path) -> None:
    (founded / "root").unlink()
    outcome = peerlm("plan", "set", "train.lr=1", "--state", founded)
    assert_one_line(outcome, 2, "root key", "not on this machine")


def test_a_refusal_of_the_daemon_is_passed_on(peerlm: Cli, daemon: FakeDaemon) -> None:
    daemon.answers["new_plan"] = ConfigError("revision 2 is known already")
    outcome = peerlm("plan", "set", "train.lr=1", "--state", daemon.layout.root)
    assert_one_line(outcome, 1, "revision 2 is known already")


# --------------------------------------------------------------------------------------- root


def test_the_root_key_travels_by_file(peerlm: Cli, founded: Path, tmp_path: Path) -> None:
    key = tmp_path / "plays.root"
    assert peerlm("root", "export", key, "--remove", "--state", founded).code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert files.read_root(founded) is None
    assert peerlm("root", "import", key, "--state", founded).code == 0
    assert files.read_root(founded) is not None
    assert_one_line(peerlm("root", "export", key, "--state", founded), 2, "exists already")


def test_the_root_key_of_another_run_is_refused(peerlm: Cli, founded: Path, tmp_path: Path) -> None:
    assert peerlm("init", "--state", tmp_path / "other", *SMALL).code == 0
    assert peerlm("root", "export", tmp_path / "k", "--state", tmp_path / "other").code == 0
    outcome = peerlm("root", "import", tmp_path / "k", "--state", founded)
    assert_one_line(outcome, 2, "is the root key of run", "this node is of run")


# ------------------------------------------------------------------------------------- revoke


def test_revoke_takes_the_beginning_of_a_members_id(peerlm: Cli, daemon: FakeDaemon) -> None:
    assert peerlm("revoke", "0202", "--state", daemon.layout.root).code == 0
    here = read_run(daemon.layout)
    command, args = daemon.asked[-1]
    assert command == "revoke"
    blob = bytes.fromhex(args["revocation"])
    assert verify_revocation(blob, here.root_public_key, here.run_id).serials == (b"\x02" * 16,)


def test_revoke_without_a_daemon_keeps_it_for_the_next_start(peerlm: Cli, founded: Path) -> None:
    assert peerlm("revoke", "ab" * 16, "--state", founded).code == 0
    assert len(files.read_revocations(founded)) == 1


@pytest.mark.parametrize("text", ["zz", "123", "0" * 33, "beef"])
def test_revoke_refuses_what_names_nobody(peerlm: Cli, daemon: FakeDaemon, text: str) -> None:
    assert_one_line(peerlm("revoke", text, "--state", daemon.layout.root), 2, text)


# -------------------------------------------------------------------------- steering, logs, rm


@pytest.mark.parametrize("command", ["pause", "resume", "stop", "leave"])
def test_steering_asks_the_daemon(peerlm: Cli, daemon: FakeDaemon, command: str) -> None:
    assert peerlm(command, "--state", daemon.layout.root).code == 0
    assert daemon.asked == [(command, {})]


def test_an_end_without_a_last_snapshot_is_no_success(peerlm: Cli, daemon: FakeDaemon) -> None:
    daemon.answers["stop"] = {"unsaved": "ended, but the last snapshot failed: the disk is full"}
    assert_one_line(peerlm("stop", "--state", daemon.layout.root), 6, "the last snapshot failed")


def test_who_may_only_use_the_socket_can_wait_for_the_end(
    peerlm: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: object, *args: int, **kwargs: int) -> int:
        if path == daemon.layout.lock:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    assert peerlm("stop", "--state", daemon.layout.root).code == 0


def test_the_end_is_not_there_before_the_socket_and_the_lock_are_gone(founded: Path) -> None:
    from peerlm.cli.steer import is_held
    from peerlm.daemon.control import is_served

    layout = Layout(founded)
    assert not is_held(layout)
    assert not is_served(layout)
    with StateDirectory(founded):
        assert is_held(layout)
    assert not is_held(layout)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(layout.control_socket))
        listener.listen()
        assert is_served(layout)
    assert not is_served(layout)  # killed: the socket's name is still there


def test_a_folder_of_an_entrance_that_was_cut_short_is_no_node(
    peerlm: Cli, founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Layout(founded).identity.unlink()
    assert_one_line(peerlm("up", "--state", founded), 3, "no node")
    assert peerlm("init", "--state", founded, *SMALL).code == 0
    assert Layout(founded).identity.exists()


def test_what_commands_write_is_the_owners_alone(peerlm: Cli, tmp_path: Path) -> None:
    assert peerlm("init", "--state", tmp_path / "a", *SMALL).code == 0
    wide = [p for p in (tmp_path / "a").rglob("*") if p.stat().st_mode & 0o077]
    assert wide == []


def test_a_node_has_its_limits_before_it_has_its_keys(
    peerlm: Cli, tmp_path: Path, founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peerlm.daemon import enrol as entrance

    blob, token = files.read_plan(founded), peerlm("invite", "--state", founded, "--address", "a")
    text = re.findall(r"peerlm1-[A-Za-z0-9_-]+", token.out)[0]
    run = read_run(Layout(founded))
    assert blob is not None

    async def plan(*_: object) -> object:
        return verify_plan(blob, run.root_public_key, run.run_id)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    new = tmp_path / "new"
    new.mkdir()
    monkeypatch.setattr(entrance, "_fetch_plan", plan)
    monkeypatch.setattr(entrance.files, "write_keys", killed)
    capped = ("--enrol-only", "--set-node", "limits.threads=3", "--state", new)
    assert peerlm("join", "a", "--token", text, *capped).code == 130
    assert "threads = 3" in Layout(new).node_settings.read_text()
    assert not Layout(new).identity.exists()


def test_logs_never_command_the_terminal(peerlm: Cli, founded: Path) -> None:
    Layout(founded).log.write_text(
        '{"time": "t", "level": "info", "event": "x", "why": "\\u001b[2J\\n!"}\n'
    )
    out = peerlm("logs", "--state", founded).out
    assert out.count("\n") == 1
    assert "\x1b" not in out


def test_logs_shows_the_last_lines(peerlm: Cli, founded: Path) -> None:
    log = Layout(founded).log
    assert_one_line(peerlm("logs", "--state", founded), 3, "has not run here")
    log.write_text(
        '{"time": "2026-01-02T03:04:05.678+00:00", "level": "info", "event": "listening", "port": 7}\n'
        '{"time": "2026-01-02T03:04:06.000+00:00", "level": "warning", "event": "snapshot_failed", '
        '"reason": "disk full", "note": ""}\n'
        "torn li\n"
    )
    assert peerlm("logs", "--state", founded).out.splitlines() == [
        "2026-01-02 03:04:05 listening port=7",
        "2026-01-02 03:04:06 warning: snapshot_failed reason=disk full",
        "torn li",
    ]
    assert peerlm("logs", "--json", "-n", "1", "--state", founded).out == "torn li\n"
    log.write_text("".join(f"line {n}\n" for n in range(30_000)))
    assert peerlm("logs", "-n", "2", "--state", founded).out == "line 29998\nline 29999\n"
    assert peerlm("logs", "-n", "0", "--state", founded).out == ""
    assert peerlm("logs", "-n", "99999", "--state", founded).out == log.read_text()


def test_rm_removes_everything_when_told_to(
    peerlm: Cli, founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert peerlm("rm", "--state", founded).code == 130, "nobody said yes"
    assert founded.exists()
    assert peerlm("rm", "--yes", "--state", founded).code == 0
    assert not founded.exists()


def test_rm_leaves_what_is_no_nodes(peerlm: Cli, founded: Path) -> None:
    (founded / "thesis.txt").write_text("years of work")
    (founded / "mine").mkdir()
    (founded / "thesis.tmp").touch()
    (founded / ".left-by-a-dead-writer.tmp").touch()
    removed = peerlm("rm", "--yes", "--state", founded)
    assert removed.code == 0
    assert "kept what is no node's: mine, thesis.tmp, thesis.txt" in removed.out
    assert sorted(path.name for path in founded.iterdir()) == ["mine", "thesis.tmp", "thesis.txt"]


def test_a_folder_that_others_use_is_not_made_a_nodes(peerlm: Cli, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    for number in range(5):
        (tmp_path / "shared" / f"file{number}").touch()
    (tmp_path / "shared").chmod(0o1777)
    refused = peerlm("init", "--state", tmp_path / "shared")
    assert_one_line(refused, 3, "holds what is no node's (file0, file1, file2, …)")
    assert (tmp_path / "shared").stat().st_mode & 0o7777 == 0o1777
    assert len(list((tmp_path / "shared").iterdir())) == 5


def test_a_rm_that_was_killed_can_be_done_again(
    peerlm: Cli, founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, gone = Path.unlink, []

    def die_at_the_third(path: Path, **options: bool) -> None:
        if len(gone) == 2:
            raise KeyboardInterrupt
        gone.append(path.name)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", die_at_the_third)
    assert peerlm("rm", "--yes", "--state", founded).code == 130
    assert gone[0] == "root", "the run's key goes first"
    monkeypatch.undo()
    assert peerlm("rm", "--yes", "--state", founded).code == 0
    assert not founded.exists()


def test_a_home_folder_of_a_service_may_become_a_nodes(peerlm: Cli, tmp_path: Path) -> None:
    for name in (".bashrc", ".cache", "invite", "lost+found"):
        (tmp_path / "home" / name).mkdir(parents=True)
    assert peerlm("init", "--state", tmp_path / "home").code == 0


def test_a_state_of_an_unset_variable_is_not_the_current_folder(peerlm: Cli) -> None:
    assert_one_line(peerlm("rm", "--yes", "--state", ""), 2, "it is empty; name the node's folder")


def test_rm_is_refused_while_the_folder_is_in_use(peerlm: Cli, founded: Path) -> None:
    with StateDirectory(founded):
        assert_one_line(peerlm("rm", "--yes", "--state", founded), 3, "in use by process")


# ---------------------------------------------------------------------------- model and shells


def test_generate_and_export_without_weights_say_so(peerlm: Cli, founded: Path) -> None:
    for command in (("generate", "ROMEO:"), ("export", str(founded / "m"))):
        assert_one_line(peerlm(*command, "--state", founded), 3, "no weights yet", "peerlm up")


def test_export_gives_back_the_weights_a_run_was_started_from(peerlm: Cli, tmp_path: Path) -> None:
    import numpy as np

    from peerlm.config import Plan, with_changes
    from peerlm.model.export import read_model, write_model
    from peerlm.model.plan import fragments

    plan = with_changes(Plan(), {"model.dim": 16, "model.heads": 2, "model.hidden": 24}, "test")
    values = [np.full(f.size, 1 + f.id, np.float32) for f in fragments(plan)]
    write_model(tmp_path / "a", plan, values)
    state = ("--state", tmp_path / "node")
    assert peerlm("init", *state, "--from", tmp_path / "a").code == 0
    assert peerlm("export", tmp_path / "b", *state).code == 0
    plan_back, values_back = read_model(tmp_path / "b")
    assert plan_back == current_plan(Layout(tmp_path / "node")).plan
    assert all(np.array_equal(a, b) for a, b in zip(values, values_back, strict=True))
    assert_one_line(peerlm("export", tmp_path / "b", *state), 2, "holds a model already")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"rubbish")
    outcome = peerlm("generate", "x", "--model", tmp_path / "b")
    assert_one_line(outcome, 2, "model.safetensors", "not a safetensors file")


def test_a_damaged_snapshot_is_said_and_the_one_before_is_taken(
    peerlm: Cli, tmp_path: Path
) -> None:
    import numpy as np

    from peerlm.config import Plan, with_changes
    from peerlm.model.export import write_model
    from peerlm.model.plan import fragments

    plan = with_changes(Plan(), {"model.dim": 16, "model.heads": 2, "model.hidden": 24}, "test")
    write_model(tmp_path / "a", plan, [np.ones(f.size, np.float32) for f in fragments(plan)])
    state = ("--state", tmp_path / "node")
    assert peerlm("init", *state, "--from", tmp_path / "a").code == 0
    kept = tmp_path / "node" / "snapshots"
    shutil.copy(kept / "snapshot-00000001.manifest", kept / "snapshot-00000002.manifest")
    (kept / "snapshot-00000002.safetensors").write_bytes(b"torn")
    outcome = peerlm("export", tmp_path / "b", *state)
    assert outcome.code == 0
    assert "snapshot 2 cannot be used" in outcome.err


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_for_this_command(peerlm: Cli, shell: str) -> None:
    outcome = peerlm("completion", shell)
    assert outcome.code == 0
    assert "_PEERLM_COMPLETE" in outcome.out


def test_a_node_that_came_by_an_invite_is_of_its_run(founded: Path, tmp_path: Path) -> None:
    root = files.read_root(founded)
    assert root is not None
    now = WallTime(1_800_000_000.0)
    token = make_invite(root_inviter(root), {Role.TRAIN}, now, now, ())
    keys = NodeKeys.generate()
    files.write_keys(tmp_path, keys)
    files.write_chain(tmp_path, enrol(token.inviter, keys, now))
    run = read_run(Layout(tmp_path))
    assert (run.run_id, run.root_public_key) == (root.run_id, root.public_key)
    assert run.node_id == keys.peer_id
