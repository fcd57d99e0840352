"""Every other command, through `main`: what it says, what it asks the daemon, how it fails."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from cli_scene import SMALL, Cli, FakeDaemon, assert_one_line

from peerlm.cli.main import COMMANDS
from peerlm.cli.plan import current_plan
from peerlm.cli.state import read_run
from peerlm.identity import files
from peerlm.identity.root import verify_plan
from peerlm.store.layout import Layout, StateDirectory

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


def test_what_generate_cannot_begin_with_is_one_line(peerlm: Cli, tmp_path: Path) -> None:
    from peerlm.config import Plan, with_changes
    from peerlm.model.export import write_model
    from peerlm.model.plan import fragments

    plan = with_changes(Plan(), {"model.dim": 16, "model.heads": 2, "model.hidden": 24}, "test")
    write_model(tmp_path, plan, [np.full(f.size, np.nan, np.float32) for f in fragments(plan)])
    asked = ("generate", "x", "--model", tmp_path)
    assert_one_line(peerlm(*asked), 2, "weights of", "are not finite")
    for seed in (1 << 64, 1 << 63, -(1 << 63) - 1):
        outcome = peerlm(*asked, "--seed", seed)
        assert outcome.code == 2
        assert f"{seed} is not in the range" in outcome.err


def test_a_damaged_snapshot_is_said_and_the_one_before_is_taken(
    peerlm: Cli, tmp_path: Path
) -> None:

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
