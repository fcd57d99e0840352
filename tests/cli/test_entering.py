"""Who may enter a run: `invite`, `join`, the root key, `revoke`."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cli_scene import (
    SMALL,
    Cli,
    FakeDaemon,
    Outcome,
    answer_of,
    assert_one_line,
    member,
    sample_summary,
)

from peerlm.cli.plan import current_plan
from peerlm.cli.settings_text import enter_with, read_node_settings
from peerlm.cli.state import has_node, read_run
from peerlm.config import with_changes
from peerlm.daemon.control import ask
from peerlm.daemon.lobby import wait_until_enrolled
from peerlm.daemon.notify import Notifier
from peerlm.identity import files
from peerlm.identity.invite import enrol, make_invite, parse_token, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.revocation import verify_revocation
from peerlm.identity.root import SignedPlan
from peerlm.store.layout import Layout
from peerlm.types import Role, WallTime

JOIN_LINE = re.compile(r"peerlm join tcp://(\S+) --token (peerlm1-[A-Za-z0-9_-]+)\n")


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


def test_stages_that_are_none_are_told_before_anybody_is_asked(peerlm: Cli, tmp_path: Path) -> None:
    outcome = peerlm("join", "h", "--token", "x", "--host", "banana", "--state", tmp_path / "n")
    assert_one_line(outcome, 2, "host.stages", "'banana'", "auto")


@pytest.fixture
def token(peerlm: Cli, founded: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a run whose model has two stages; the plan comes without a network."""
    signed = current_plan(Layout(founded))
    plan = with_changes(signed.plan, {"model.stages": "2"}, "test")

    async def fetch(*_: object) -> SignedPlan:
        return replace(signed, plan=plan)

    monkeypatch.setattr("peerlm.daemon.enrol._fetch_plan", fetch)
    line = JOIN_LINE.fullmatch(peerlm("invite", "--state", founded, "--address", "h:1").out)
    assert line
    return line[2]


def test_stages_that_the_run_has_not_end_the_attempt_before_there_is_a_node(
    peerlm: Cli, token: str, tmp_path: Path
) -> None:
    enrols = ("join", "h", "--token", token, "--state", tmp_path / "n", "--enrol-only", "--host")
    assert_one_line(peerlm(*enrols, "7"), 2, "--host = '7'", "has 2 stages")
    assert not (tmp_path / "n").exists()
    assert peerlm(*enrols, "1").code == 0
    assert read_node_settings(Layout(tmp_path / "n")).host.stages == "1"


def test_a_service_that_waits_says_so_too_and_waits_on(
    peerlm: Cli, token: str, tmp_path: Path
) -> None:
    layout, is_up = Layout(tmp_path / "n"), threading.Event()

    def invite() -> str:
        is_up.set()
        return ""

    def joined() -> tuple[Outcome, bool]:
        try:
            assert is_up.wait(10)
            outcome = peerlm("join", "h", "--token", token, "--state", layout.root, "--host", "7")
            return outcome, has_node(layout)
        finally:
            ask(layout, "stop")

    with ThreadPoolExecutor(1) as beside:
        heard = beside.submit(joined)
        enter, notifier = partial(enter_with, layout), Notifier()
        assert not wait_until_enrolled(layout.root, enter, notifier=notifier, invite=invite)
        notifier.close()
    outcome, is_node = heard.result()
    assert_one_line(outcome, 1, "--host = '7'", "has 2 stages")
    assert not is_node


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
