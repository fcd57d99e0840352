"""Entering a run: from a token and one member's address to a state directory that `run` can use.

The newcomer makes its keys on its own disk and signs itself in with the token's invite key. Then it
knocks at the address it was given: introduction, encrypted link, plan. Only when the plan is in
hand is the directory written, the keys last, so a failed attempt leaves nothing that looks like a
node. Weights and text come later, from everybody, when the daemon runs.

Each step that fails says which it was: resolve, connect, handshake or admission.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

from peerlm.config import Plan
from peerlm.daemon.introduction import Introduction
from peerlm.daemon.knock import answer_to
from peerlm.daemon.link import Links
from peerlm.daemon.loop import now, wall
from peerlm.errors import AuthError, Unreachable
from peerlm.events import (
    Event,
    LinkDown,
    LinkUp,
    Received,
)
from peerlm.identity import files
from peerlm.identity.chain import Chain, Verified
from peerlm.identity.gate import Gate
from peerlm.identity.invite import Token, parse_token
from peerlm.identity.invite import enrol as sign_in
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import SignedPlan, verify_plan
from peerlm.membership.address_book import AddressBook
from peerlm.store.disk import write_atomic
from peerlm.store.layout import StateDirectory
from peerlm.wire.message import Hello, PlanAsk, PlanGive, Refusal, Welcome
from peerlm.wire.versions import PROTOCOL_VERSION, fits, misfit

ANSWER_S = 10.0
"""Longest wait for the link, and for the plan, of a member that has let us in."""

RETRY_S = 1.0
RETRY_S_MAX = 30.0


def enrol(
    root: Path,
    address: str,
    token_text: str,
    *,
    wait: bool,
    report: Callable[[str], None],
    before_keys: Callable[[Plan], None] = lambda plan: None,
) -> None:
    """Enrol this machine's node in `root` through the member at `address`.

    Args:
        wait: keep trying, with a growing pause, while the member cannot be reached.
        report: told one line for each step, for a person.
        before_keys: called with the run's plan when a member has let us in, before anything is written; what it
            raises ends the attempt.

    Raises:
        AuthError: the token is not good, or the member refuses it.
        Unreachable: the member cannot be reached (without `wait`).
        StateError: the directory cannot be used.
    """
    parse_token(token_text)  # a bad one makes no folder
    with (
        StateDirectory(root) as state,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(
            enrol_in(
                state, [address], token_text, wait=wait, report=report, before_keys=before_keys
            )
        )


async def enrol_in(
    state: StateDirectory,
    addresses: Sequence[str],
    token_text: str,
    *,
    wait: bool,
    report: Callable[[str], None],
    before_keys: Callable[[Plan], None] = lambda plan: None,
) -> None:
    """`enrol` for who holds the state directory and has a loop: its small files are written on it. Through the first of the
    addresses at which a member answers; with `wait` all are tried in turn."""
    token = parse_token(token_text)
    keys = NodeKeys.generate()
    chain = sign_in(token.inviter, keys, wall())
    Gate(token.root_public_key, token.run_id).admit(chain, wall())
    plan = await _fetch_plan(addresses, token, keys, chain, wait, report)
    before_keys(plan.plan)
    seeds = tuple(dict.fromkeys((*addresses, *token.addresses)))
    write_atomic(state.address_book, AddressBook(seeds).to_bytes(now(), wall()))
    files.write_plan(state.root, plan.blob)
    files.write_chain(state.root, chain)
    if token.inviter.authority().may_invite:
        files.write_inviter(state.root, token.inviter)
    files.write_keys(state.root, keys)
    report(f"enrolled in run {plan.plan.run.name}, plan revision {plan.revision}")


async def _fetch_plan(
    addresses: Sequence[str],
    token: Token,
    keys: NodeKeys,
    chain: Chain,
    wait: bool,
    report: Callable[[str], None],
) -> SignedPlan:
    delay_s = RETRY_S
    while True:
        reasons = []
        for address in addresses:
            try:
                return await _Attempt(address, token, keys, chain).plan()
            except Unreachable as error:
                if not wait:
                    raise
                reasons.append(str(error))
        report(f"{'; '.join(reasons)}; trying again in {delay_s:.0f} s")
        await asyncio.sleep(delay_s * random.SystemRandom().uniform(0.8, 1.2))
        delay_s = min(2 * delay_s, RETRY_S_MAX)


class _Attempt:
    """One knock at one address."""

    def __init__(self, address: str, token: Token, keys: NodeKeys, chain: Chain) -> None:
        self._address = address
        self._token = token
        self._keys = keys
        self._chain = chain
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def plan(self) -> SignedPlan:
        introduction = await Introduction.listen(self._events.put_nowait, "127.0.0.1", 0)
        keys = self._keys
        links = Links(
            self._events.put_nowait,
            "127.0.0.1",
            0,
            keys.curve_public,
            keys.curve_secret,
            keys.peer_id,
        )
        try:
            host, welcome = await self._introduce(introduction)
            member = self._verified(welcome)
            links.admit(member.peer_id, member.curve_pk)
            links.open(member.peer_id, host, welcome.control_port, member.curve_pk)
            return await self._ask(links, member)
        except TimeoutError:
            raise Unreachable(
                "admission",
                f"{self._address}: let us in, but then did not answer for {ANSWER_S:.0f} s",
            ) from None
        finally:
            await introduction.close()
            await links.close()

    async def _introduce(self, introduction: Introduction) -> tuple[str, Welcome]:
        hello = Hello(PROTOCOL_VERSION, self._token.run_id, self._chain)
        host, answer = await answer_to(hello, self._address, introduction, self._events)
        if isinstance(answer, Refusal):
            detail = f"{self._address}: admission: refused: {answer.detail}"
            raise AuthError(answer.reason, detail)
        if not fits(answer.version):
            raise AuthError("version", f"{self._address}: admission: {misfit(answer.version)}")
        return host, answer

    def _verified(self, welcome: Welcome) -> Verified:
        token = self._token
        gate = Gate(token.root_public_key, token.run_id)
        try:
            return gate.admit(welcome.chain, wall(), vouched=True)
        except AuthError as error:
            raise AuthError(
                error.code,
                f"{self._address}: admission: its certificate is not of this run: {error}",
            ) from None

    async def _ask(self, links: Links, member: Verified) -> SignedPlan:
        async with asyncio.timeout(ANSWER_S):
            while True:
                match await self._events.get():
                    case LinkUp():
                        links.send(member.peer_id, PlanAsk())
                    case LinkDown(reason=reason):
                        raise Unreachable(
                            "admission",
                            f"{self._address}: admission: the encrypted link was {reason}",
                        )
                    case Received(message=PlanGive(signed_plan=blob)):
                        token = self._token
                        return verify_plan(blob, token.root_public_key, token.run_id)
