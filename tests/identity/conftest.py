"""A run with its root, on a fixed random source, and short ways to let nodes in."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

import pytest

from peerlm.errors import AuthError
from peerlm.identity.chain import Chain, Verified, check_now, read_chain
from peerlm.identity.invite import Inviter, Token, enrol, make_invite, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import create_run
from peerlm.types import Role, WallTime

START = 1_800_000_000.0
DAY = 86_400.0
WORKING = (Role.TRAIN, Role.STORE, Role.SERVE, Role.OBSERVE)


class Run:
    """One run and everything a test wants to do with it. Wall time stands still at `now`."""

    def __init__(self, rng_seed: int = 1) -> None:
        self.entropy = random.Random(rng_seed).randbytes
        self.root = create_run("plays", self.entropy)
        self.inviter = root_inviter(self.root)
        self.now = WallTime(START)

    @property
    def place(self) -> tuple[bytes, bytes]:
        """Root key and run id, as the checking functions take them."""
        return self.root.public_key, self.root.run_id

    def keys(self) -> NodeKeys:
        return NodeKeys.generate(self.entropy)

    def invite(
        self,
        roles: Collection[Role] = WORKING,
        *,
        by: Inviter | None = None,
        enrol_days: float = 7,
        certs_days: float = 365,
    ) -> Token:
        until = [WallTime(self.now + days * DAY) for days in (enrol_days, certs_days)]
        addresses = ("tcp://10.0.0.1:7700",)
        return make_invite(by or self.inviter, roles, *until, addresses, self.entropy)

    def newcomer(self, token: Token | None = None) -> tuple[NodeKeys, Chain]:
        keys = self.keys()
        return keys, enrol((token or self.invite()).inviter, keys, self.now)

    def verify(self, chain: Chain, after_days: float = 0, **options: object) -> Verified:
        """Read a chain and hold it against the date so many days from now."""
        verified = read_chain(chain, *self.place)
        check_now(verified, WallTime(self.now + after_days * DAY), **options)
        return verified


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def other_run() -> Run:
    return Run(rng_seed=2)


@pytest.fixture
def refused() -> Callable[..., str]:
    """Call something that must raise `AuthError`; its code."""

    def code_of(act: Callable[..., object], *args: object, **options: object) -> str:
        with pytest.raises(AuthError) as caught:
            act(*args, **options)
        assert "\n" not in str(caught.value)
        return caught.value.code

    return code_of
