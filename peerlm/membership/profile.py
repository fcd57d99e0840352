"""Timers and bounds of failure detection and gossip, in three presets.

Numbers are memberlist's, which years of use have settled; where links are reliable (TCP) some of
them are generous on purpose. `lan` is for one building, `wan` for links that take hundreds of
milliseconds, `test` is `lan` with every timer divided by five. All nodes of a run use the same
profile (it is part of the plan), since a node that suspects sooner than others can refute is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from peerlm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Profile:
    """One set of timers. Defaults are `lan`."""

    probe_interval_s: float = 1.0
    """Length of a period: each begins one probe. Smaller finds failures sooner and sends more
    (two messages per node and period). Multiplied by the local health score + 1."""
    probe_timeout_s: float = 0.5
    """Wait for a direct answer before asking others. Larger tolerates slower links (keep it above
    4 × the round-trip); smaller leaves more of the period to the indirect probe."""
    indirect_probers: int = 3
    """Members asked to probe a silent one (SWIM's k). More are right more often and cost more."""
    suspicion_mult: int = 4
    """Shortest suspicion = this · max(1, log10 N) · probe_interval. Larger gives an accused node
    longer to refute, and a crash longer to be known. Wanted confirmations: this − 2."""
    suspicion_max_mult: int = 6
    """Longest suspicion (nobody else agrees) = this · the shortest."""
    verdict_min_s: float = 4.6
    """No suspicion ends sooner, however many agree. With the second that a failed probe takes, a
    freeze of five seconds kills nobody; smaller finds crashes sooner and forgives shorter freezes."""
    early_accusers: int = 6
    """With so many accusers (in a small swarm: all others), itself among them, a node ends a
    suspicion at `verdict_min_s`, whatever N. Larger trusts fewer sick accusers and ends fewer
    suspicions early. 0: verdicts come as in memberlist, and `verdict_min_s` does not count."""
    askers: int = 12
    """About so many of those who hear of a suspicion ask the suspect themselves at once, and accuse
    it too if it is silent; who is well learns from them that it is doubted. More make
    `early_accusers` surer and cost a probe each per suspicion."""
    gossip_interval_s: float = 0.2
    """Time between two rounds of rumors. Smaller spreads news sooner in more messages."""
    fan_out: int = 3
    """Members a round of rumors goes to."""
    retransmit_mult: int = 4
    """A rumor is sent max(sends_min, this · ceil(log10(N + 1))) times by each node."""
    sends_min: int = 12
    """With fewer sends, push alone misses nodes of a small swarm in one broadcast of twenty."""
    sync_interval_s: float = 30.0
    """Time between two push-pulls with a random member, ± 20 %; multiplied by
    ceil(log2 N − 5) + 1 above 32 members. What rumors missed is repaired this late; for a newcomer
    after one to two `probe_interval_s`, and then twice as late each time."""
    heal_interval_s: float = 10.0
    """Each such time, ± 20 %, with probability max(0.1, 3/N), one dead or unknown address is tried.
    Smaller heals a partition sooner and dials the dead more often."""
    isolated_retry_s: float = 1.0
    """A node without live members tries addresses this often; doubles with each fruitless pass."""
    isolated_retry_max_s: float = 30.0
    """Bound of that back-off."""
    awareness_max: int = 8
    """Local health score stays below this (Lifeguard). 0 is healthy."""
    lag_tolerance_s: float = 0.25
    """A wake later than this was not the peers' fault: deadlines move by what we overslept."""
    dead_retention_s: float = 86_400.0
    """How long a dead member is listed and its address tried by the heal task."""
    left_retention_s: float = 86_400.0
    """How long a goodbye is remembered, so that old rumors do not bring the node back."""
    members_max: int = 4096
    """Most members listed; the oldest dead make room. What a digest can carry."""
    ping_bytes_max: int = 4096
    """Rumors that ride on one probe or its answer."""
    gossip_bytes_max: int = 48 * 1024
    """Rumors in one message of a gossip round; the longest rumor fits."""

    @property
    def nack_after_s(self) -> float:
        """A helper that got no answer says so after 80 % of the time its asker still waits."""
        return 0.8 * (self.probe_interval_s - self.probe_timeout_s)


LAN = Profile()

WAN = Profile(
    probe_interval_s=5.0,
    probe_timeout_s=3.0,
    suspicion_mult=6,
    verdict_min_s=25.0,
    gossip_interval_s=0.5,
    fan_out=4,
    sync_interval_s=60.0,
    heal_interval_s=20.0,
    lag_tolerance_s=1.0,
)

_LONG = ("dead_retention_s", "left_retention_s")
"""Not divided: they are about days, not about patience."""


def faster(profile: Profile, factor: float) -> Profile:
    """The profile with every timer (not the retention times) divided by `factor`."""
    timers = {
        f.name: getattr(profile, f.name) / factor
        for f in fields(profile)
        if f.name.endswith("_s") and f.name not in _LONG
    }
    return replace(profile, **timers)


TEST = faster(LAN, 5.0)


def without_early_verdicts(profile: Profile) -> Profile:
    """The profile with verdicts as memberlist's, for comparison: no askers, and no suspicion shorter
    than memberlist's floor."""
    return replace(profile, early_accusers=0)


def without_lifeguard(profile: Profile) -> Profile:
    """The profile with plain SWIM's patience, for comparison: a node never doubts itself, and every
    suspicion lasts memberlist's floor, whoever agrees."""
    return replace(without_early_verdicts(profile), awareness_max=1, suspicion_max_mult=1)


PROFILES = {"lan": LAN, "wan": WAN, "test": TEST}


def profile_named(name: str) -> Profile:
    """The preset of this name. Raises `ConfigError` naming the presets there are."""
    if name not in PROFILES:
        raise ConfigError(f"swarm.profile = {name!r}: must be one of {', '.join(PROFILES)}")
    return PROFILES[name]
