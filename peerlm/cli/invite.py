"""`peerlm invite`: the line that lets another machine in."""

from __future__ import annotations

import re
import time

import click

from peerlm.cli.state import state_option
from peerlm.errors import ConfigError
from peerlm.store.layout import Layout
from peerlm.types import Role, WallTime

DEFAULT_ROLES = (Role.TRAIN, Role.STORE, Role.SERVE, Role.OBSERVE)
SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}


def lifetime(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    """`90m`, `12h`, `7d`, `2w` or `1y` in seconds."""
    match = re.fullmatch(r"(\d{1,6})([mhdwy])", value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is no time: write 90m, 12h, 7d, 2w or 1y")
    return int(match[1]) * SECONDS[match[2]]


def _roles(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> frozenset[Role]:
    """Each value is a role, or several with commas; none means the usual ones."""
    names = [name.strip() for value in values for name in value.split(",")]
    if unknown := [name for name in names if name not in set(Role)]:
        raise click.BadParameter(f"no role {unknown[0]!r}; roles are {', '.join(Role)}")
    return frozenset(map(Role, names)) or frozenset(DEFAULT_ROLES)


@click.command(short_help="Print the line that lets another machine in.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    callback=_roles,
    metavar="ROLES",
    help="What the newcomers may do: train, store, serve, observe, invite; several with commas.  "
    "[default: train,store,serve,observe]",
)
@click.option(
    "--enrol-until",
    "enrol_s",
    callback=lifetime,
    metavar="TIME",
    default="7d",
    show_default=True,
    help="For how long the token lets new machines in.",
)
@click.option(
    "--certs-until",
    "certs_s",
    callback=lifetime,
    metavar="TIME",
    default="1y",
    show_default=True,
    help="For how long those that came by it stay members.",
)
@click.option(
    "--address",
    "addresses",
    metavar="HOST:PORT",
    multiple=True,
    help="An address that newcomers can dial.  [default: this node's own]",
)
@state_option
def invite(
    layout: Layout,
    roles: frozenset[Role],
    enrol_s: int,
    certs_s: int,
    addresses: tuple[str, ...],
) -> None:
    """Print one line, ready to be run on another machine.

    The token in it is a secret: whoever has it can enter, any number of times, until it runs out or is
    revoked. It is signed here with the run's root key, or by this node's own delegation if it came
    with role invite; no other node need be up, and newcomers may enter through any member.

    \b
    Examples:
      peerlm invite
      peerlm invite --enrol-until 2h
      peerlm invite --role observe --certs-until 30d
      peerlm invite --role train,store,invite      whoever comes by it may invite others
      peerlm invite --address gate.example.org:7700
    """
    from peerlm.cli.signer import find_signer
    from peerlm.identity.chain import date
    from peerlm.identity.invite import make_invite

    for option, seconds in (("--enrol-until", enrol_s), ("--certs-until", certs_s)):
        if seconds < 1:
            raise ConfigError(f"{option}: what ends at once lets nobody in")
    signer = find_signer(layout, "invite")
    places = tuple(addresses) or dialable_addresses(layout)
    if not places:
        raise ConfigError(
            "nobody can dial this node, and it sees no other member: say --address HOST:PORT, or see "
            "`peerlm why`"
        )
    wall = time.time()
    token = make_invite(
        signer,
        roles,
        WallTime(wall + enrol_s),
        WallTime(wall + certs_s),
        places,
    )
    authority = token.inviter.authority()
    click.echo(
        f"lets machines in until {date(authority.enrol_until)}; "
        f"take it back with: peerlm revoke {authority.serials[-1].hex()}",
        err=True,
    )
    click.echo(f"peerlm join tcp://{places[0]} --token {token.to_text()}")


def dialable_addresses(layout: Layout) -> tuple[str, ...]:
    """Where newcomers can knock: this node first, then a few members it sees alive.

    From the daemon if it runs, else from node.toml. Raises `ConfigError` when nothing is certain.
    """
    from peerlm.daemon.control import NoDaemon, ask
    from peerlm.identity.invite import ADDRESSES_MAX

    try:
        status = ask(layout, "status")
    except NoDaemon:
        return (_address_by_settings(layout),)
    alive = [m["address"] for m in status["members"] if m["state"] == "alive" and m["address"]]
    places = dict.fromkeys(bare(a) for a in (status["address"], *alive) if a)
    return tuple(places)[:ADDRESSES_MAX]


def bare(address: str) -> str:
    """`host:port` of `tcp://host:port`."""
    return address.removeprefix("tcp://").rstrip("/")


def _address_by_settings(layout: Layout) -> str:
    from peerlm.cli.settings_text import read_node_settings
    from peerlm.daemon.address import advertised_host
    from peerlm.membership.address_book import address_of

    network = read_node_settings(layout).network
    if network.port == 0:
        raise ConfigError(
            "the port is not known before the node runs (network.port = 0): start it with `peerlm up`, "
            "or say --address HOST:PORT"
        )
    return bare(address_of(advertised_host(network, ()), network.port))
