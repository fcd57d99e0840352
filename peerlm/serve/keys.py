"""Who may ask, and how much a minute.

A key is 256 random bits that its holder keeps; the file has its hash, which is of no use to whoever reads it. All
hashes are compared, in a time that says nothing about them. What a key may use in a minute flows into a bucket
that holds a minute's worth; a request takes its most from the bucket first, and what it did not use goes back.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from blake3 import blake3

from peerlm.errors import ConfigError, StateError
from peerlm.store import disk
from peerlm.types import Instant, printable

FORMAT = "peerlm-keys-1"
PREFIX = "sk-peerlm-"
SECRET_BYTES = 32
FILE_BYTES_MAX = 4 << 20
KEYS_MAX = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Key:
    """One holder. A quota of 0 is no limit. `made`: Unix time."""

    name: str
    hash: str
    tokens_a_minute: int = 0
    requests_a_minute: int = 0
    made: int = 0


def secret_of(random_bytes: bytes) -> str:
    """The key as its holder writes it."""
    return PREFIX + base64.urlsafe_b64encode(random_bytes).decode().rstrip("=")


def hash_of(secret: str) -> str:
    return blake3(secret.encode("utf-8", "replace"), derive_key_context=FORMAT).hexdigest()


def check_name(name: str) -> str:
    """Raises `ConfigError`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {printable(name[:80])!r}: must be 1 to 64 letters, digits, '.', '_' or '-'"
        )
    return name


def read(path: Path) -> list[Key]:
    """Keys of the file; none if it is absent. Raises `StateError`."""
    if not path.exists():
        return []
    try:
        found = json.loads(disk.read_file(path, FILE_BYTES_MAX))
        if found["format"] != FORMAT:
            raise ValueError("another format")
        keys = [Key(**one) for one in found["keys"]]
        for key in keys:
            whole = (key.tokens_a_minute, key.requests_a_minute, key.made)
            if not (
                re.fullmatch("[0-9a-f]{64}", key.hash)
                and _NAME.fullmatch(key.name)
                and all(type(n) is int and n >= 0 for n in whole)
            ):
                raise ValueError("a key that is none")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = printable(str(error)[:120])
        raise StateError(f"{path}: no file of keys: {why}; put back a copy, or remove it") from None
    return keys


def write(path: Path, keys: Iterable[Key]) -> None:
    """Raises `StateError`."""
    body = {"format": FORMAT, "keys": [asdict(key) for key in keys]}
    disk.write_atomic(path, json.dumps(body, indent=1).encode() + b"\n")


class Bucket:
    """Fills at `a_minute` and holds as much; full at first."""

    def __init__(self, a_minute: int, now: Instant) -> None:
        self._a_minute, self._level, self._at = a_minute, float(a_minute), now

    def wait_s(self, amount: float, now: Instant) -> float:
        """How long until `amount` can be taken; 0: now; infinite: never."""
        if amount > self._a_minute:
            return float("inf")
        self._flow(now)
        return max(0.0, (amount - self._level) * 60 / self._a_minute)

    def take(self, amount: float) -> None:
        """Negative gives back."""
        self._level = min(self._level - amount, self._a_minute)

    def _flow(self, now: Instant) -> None:
        self._level = min(self._level + (now - self._at) * self._a_minute / 60, self._a_minute)
        self._at = now


class Holder:
    """A key with what it has left."""

    def __init__(self, key: Key, now: Instant) -> None:
        self.key = key
        self._requests = Bucket(key.requests_a_minute, now) if key.requests_a_minute else None
        self._tokens = Bucket(key.tokens_a_minute, now) if key.tokens_a_minute else None

    def take(self, tokens: int, now: Instant) -> tuple[str, float] | None:
        """Takes one request of at most `tokens`; or says which quota stands against it, and for how long."""
        for bucket, amount, what in (
            (self._requests, 1, "requests"),
            (self._tokens, tokens, "tokens"),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(amount, now)) > 0:
                return what, wait_s
        if self._requests is not None:
            self._requests.take(1)
        if self._tokens is not None:
            self._tokens.take(tokens)
        return None

    def give_back(self, tokens: int, *, request: bool = False) -> None:
        """What was taken and not used; with `request`, nothing was done at all."""
        if self._tokens is not None:
            self._tokens.take(-tokens)
        if request and self._requests is not None:
            self._requests.take(-1)


class Keyring:
    """All holders. `is_needed`: nobody is let in without a key; once so, it stays so."""

    def __init__(self, keys: Iterable[Key], now: Instant) -> None:
        self._holders: dict[str, Holder] = {}
        self.is_needed = False
        self.replace(keys, now)

    def replace(self, keys: Iterable[Key], now: Instant) -> None:
        """The file has changed: who is still in it keeps what it has left."""
        holders: dict[str, Holder] = {}
        for key in keys:
            known = self._holders.get(key.hash)
            holders[key.hash] = known if known and known.key == key else Holder(key, now)
        self._holders = holders  # at once: another thread may be looking somebody up
        self.is_needed = self.is_needed or bool(self._holders)

    def find(self, secret: str) -> Holder | None:
        wanted, found = hash_of(secret), None
        for hash_, holder in self._holders.items():
            if hmac.compare_digest(hash_, wanted):
                found = holder
        return found
