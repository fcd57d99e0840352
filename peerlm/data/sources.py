"""Files somewhere: what a URL stands for, and their bytes, in any part or in order.

A *listing* says which files there are, in the order of their names, how large they are, which version of each it is if the
file system tells, and whether any part of one can be read by itself. It is data: who has it needs not ask again, and a second reader with the same listing reads the same.

A part of a file is asked for again when the line breaks, a few times; a file whose parts cannot be asked for (a server
without ranges) is then read from its beginning again up to where it broke. Who wants to wait between two tries passes
`pause`.

Whatever is wrong with a source is for a person to mend, so every failure here is a `ConfigError` of one line.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

from peerlm.data import denials
from peerlm.errors import ConfigError, PeerlmError
from peerlm.types import printable

SHIPPED = "shipped"

BLOCK_BYTES = 4 << 20
"""What a file that is read in order is asked for at once."""

TRIES = 5
FIRST_PAUSE_S = 0.5
"""Before the second try; it doubles."""

Pause = Callable[[float], object]
"""Told how many seconds to wait."""

PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("hdfs", "viewfs"), "hdfs"),
    **dict.fromkeys(("http", "https", "webhdfs"), "http"),
    "hf": "hub",
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "az"),
}
"""Kind of URL → the extra of peerlm that reads it."""

OPTIONS = {kind: {"dfs.client.failover.max.attempts": "4"} for kind in ("hdfs", "viewfs")}
"""Kind of URL → what its file system is told. By itself hdfs-native asks a name node that is not there for minutes."""

CONNECT_S, SILENT_S = 30.0, 60.0
"""A web server that says nothing for so long is asked anew. By itself the library gives up an answer that takes five minutes, however fast
it comes: a file of gigabytes without ranges was begun again and again."""

VERSIONS = (
    *("ETag", "etag", "Content-MD5", "blob_id", "mtime", "LastModified", "last_modified"),
    *("Last-Modified", "modification_time", "modificationTime", "updated"),
)
"""What file systems call it that changes with a file's bytes: the first that is there. Times where there is no better."""

VERSION_CHARS_MAX = 128

WEB_PORT = 9870
"""Of a name node of HDFS, where nobody has chosen another."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: str
    """As its file system names it."""
    size: int | None
    """Bytes, as they are stored. None: not known before it is read."""
    ranges: bool = True
    """Any part can be read by itself."""
    version: str = ""
    """What changes when its bytes do, as far as its file system tells: an ETag, or when it was written. Empty: it does not."""


@dataclass(frozen=True, slots=True)
class Source:
    """A listing."""

    url: str
    where: str
    """What named it, for error messages: "plan.toml: data.source"."""
    files: tuple[SourceFile, ...]

    @property
    def size_bytes(self) -> int:
        """Of the files whose size is known."""
        return sum(file.size or 0 for file in self.files)


def listed(url: str, where: str, *, with_empty: bool = False) -> Source:
    """What `url` stands for now: `shipped`, or an fsspec URL of a file, a directory (read recursively, names that start
    with a dot left out) or a glob. Empty files are left out, unless they are wanted and not all there is.

    Raises:
        ConfigError: nothing there, nothing in it, or it cannot be listed.
    """
    with explained(url, where):
        fs, infos = files_of(url)
        if not infos:
            raise ConfigError(f"{where} = {url!r}: no files match")
        files = tuple(
            SourceFile(path, size, size is not None and _has_ranges(fs, path, size), _version(info))
            for path, info in infos.items()
            if (size := _size(info)) != 0 or with_empty
        )
    if all(file.size == 0 for file in files):
        raise ConfigError(f"{where} = {url!r}: there is nothing in it")
    return Source(url, where, files)


def files_of(url: str) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The file system, and all files that `url` stands for: path → what the file system says of it, sorted."""
    fs, path = file_system(url)
    fs.invalidate_cache()  # it may remember how it was some time ago
    if is_web(url):  # '?' is no glob here, and a page is no directory
        return fs, {path: fs.info(path)}
    try:
        info = fs.info(path)
    except FileNotFoundError:
        info = {}
    if info.get("type") == "file":
        return fs, {path: info}
    if info.get("type") == "directory":
        root = path.rstrip("/")
        found = fs.find(root, detail=True)
        names = {file: file[len(root) :].split("/") for file in found}
        return fs, {
            file: found[file]
            for file, parts in sorted(names.items())
            if not any(part.startswith(".") for part in parts)
        }
    if any(mark in path for mark in "*?["):
        found = fs.glob(path, detail=True)
        return fs, {
            file: info for file, info in sorted(found.items()) if info.get("type") == "file"
        }
    raise FileNotFoundError(path)


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there."""
    import fsspec  # costs a tenth of a second and is needed only where a corpus is made

    if url == SHIPPED:
        url = str(Path(__file__).parent / "shipped" / "shakespeare.txt")
    fs, path = fsspec.core.url_to_fs(url, **_options(kind_of(url)))
    return fs, path


def _options(kind: str) -> dict[str, Any]:
    if kind not in ("http", "https"):
        return dict(OPTIONS.get(kind, {}))
    from aiohttp import ClientTimeout

    patience = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
    return {"client_kwargs": {"timeout": patience}}


def is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def kind_of(url: str) -> str:
    """`s3` of `s3://bucket/plays`; `file` where there is none."""
    kind, colon, _ = url.partition("://")
    return kind if colon else "file"


def _size(info: dict[str, Any]) -> int | None:
    size = info.get("size")
    return int(size) if size is not None else None


def _version(info: dict[str, Any]) -> str:
    found = next((info[key] for key in VERSIONS if info.get(key)), "")
    if isinstance(found, float):
        found = int(found * 1000)
    return printable(str(found).strip('"'))[:VERSION_CHARS_MAX]


def _has_ranges(fs: Any, path: str, size: int) -> bool:
    """Servers of the web differ, and what they say of themselves need not be so: it is tried."""
    if not is_web(path) or size < 2:
        return True
    try:
        return len(_part(fs, path, size, size - 1, size)) == 1
    except (ValueError, OSError):  # what fsspec says of a server that sends it all
        return False


# ------------------------------------------------------------------------------------- reading


def part(
    fs: Any, file: SourceFile, start: int, end: int, where: str, pause: Pause = lambda _: None
) -> bytes:
    """Bytes `start` to `end` of a file that has ranges, all of them.

    Raises:
        ConfigError: after some tries; or the file is shorter than it was.
    """
    assert file.ranges, file
    assert file.size is not None, file
    for attempt in range(TRIES):
        try:
            got = _part(fs, file.path, file.size, start, end)
        except _FINAL:
            raise
        except Exception as error:  # a file system raises whatever its own library raises
            if attempt + 1 == TRIES:
                raise _unreadable(fs, file, start, error, where) from None
            pause(FIRST_PAUSE_S * 2**attempt)
            continue
        if len(got) == end - start:
            return got
        raise ConfigError(
            f"{where}: {file.path} had {file.size} bytes and now ends after {start + len(got)}: "
            "it changed while it was read; start again"
        )
    raise AssertionError("the last try raises")


def in_order(fs: Any, file: SourceFile, where: str, pause: Pause = lambda _: None) -> BinaryIO:
    """The whole file, to be read once. Reading it raises `ConfigError` as `part` does."""
    raw = Ranges(fs, file, where, pause) if file.ranges else Restarted(fs, file, where, pause)
    return cast("BinaryIO", io.BufferedReader(raw, BLOCK_BYTES if file.ranges else 1 << 16))


_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ConfigError)
"""No other try would end otherwise."""


class Ranges(io.RawIOBase):
    """A file that has ranges, read block by block."""

    def __init__(self, fs: Any, file: SourceFile, where: str, pause: Pause) -> None:
        self._fs, self._file, self._where, self._pause = fs, file, where, pause
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._file.size or 0
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._file.size or 0)
        if self._at >= end:
            return 0
        got = part(self._fs, self._file, self._at, end, self._where, self._pause)
        buffer[: len(got)] = got
        self._at += len(got)
        return len(got)


class Restarted(io.RawIOBase):
    """A file that has none, read in order; when the line breaks, from its beginning up to there again."""

    def __init__(self, fs: Any, file: SourceFile, where: str, pause: Pause) -> None:
        self._fs, self._file, self._where, self._pause = fs, file, where, pause
        self._at, self._broken = 0, 0
        self._open: Any = None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                if self._open is None:
                    self._reopen()
                got = self._open.read(len(buffer))
                break
            except _FINAL:
                raise
            except Exception as error:
                self._broken += 1
                self._close()
                if self._broken == TRIES:
                    raise _unreadable(self._fs, self._file, self._at, error, self._where) from None
                self._pause(FIRST_PAUSE_S * 2 ** (self._broken - 1))
        buffer[: len(got)] = got
        self._at += len(got)
        return len(got)

    def close(self) -> None:
        self._close()
        super().close()

    def _reopen(self) -> None:
        self._open = self._fs.open(self._file.path, "rb", block_size=0)
        left = self._at
        while left:
            passed = len(self._open.read(min(left, 1 << 20)))
            if not passed:
                raise EOFError(f"it ends {left} bytes earlier than before")
            left -= passed

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None


def _part(fs: Any, path: str, size: int, start: int, end: int) -> bytes:
    if (
        is_web(path) or fs.protocol == "hf"
    ):  # its `cat_file` takes more than was asked for, this does not
        with fs.open(path, "rb", size=size, cache_type="none") as file:
            file.seek(start)
            return bytes(file.read(end - start))
    return bytes(fs.cat_file(path, start=start, end=end))


# -------------------------------------------------------------------------------------- errors


@contextmanager
def explained(url: str, where: str, done: str = "read") -> Iterator[None]:
    """Turns what a file system raises into a `ConfigError` of one line. `done`: what cannot be done to `url`."""
    named = f"{where} = {url!r}"
    try:
        yield
    except PeerlmError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__  # over http everything that went wrong is "not found"
        if cause is not None and getattr(cause, "status", 0) != 404:
            raise ConfigError(f"{named}: cannot be {done}: {_line(cause)}") from None
        reason = _line(cause) if cause else "no such file or directory"
        if kind_of(url) == "hf":  # it does not say that there is what one may not see
            reason += f"; what is private or gated needs {denials.CREDENTIALS['hf']}"
        raise ConfigError(f"{named}: not found: {reason}") from None
    except ImportError as error:
        raise _lacking(named, url, error) from None
    except Exception as error:  # a file system of fsspec raises whatever its own library raises
        if PACKAGES.get(kind_of(url)) == "hdfs" and not find_spec("hdfs_native"):
            raise _lacking(named, url, error) from None  # pyarrow's, which wants Hadoop beside it
        reason = _reason(error, kind_of(url), done)
        raise ConfigError(f"{named}: {reason}{_otherwise(url)}") from None


def _lacking(named: str, url: str, error: Exception) -> ConfigError:
    extra = PACKAGES.get(kind_of(url))
    remedy = f"; pip install 'peerlm[{extra}]'" if extra else ""
    return ConfigError(
        f"{named}: needs a package that is missing: {_line(error)}{remedy}{_otherwise(url)}"
    )


def _otherwise(url: str) -> str:
    """Another way to the same files, to be typed in place of `url`; empty: there is none."""
    if kind_of(url) != "hdfs":
        return ""
    at, _, path = url.removeprefix("hdfs://").partition("/")
    host = re.sub(r":\d*$", "", at.rpartition("@")[2]) or "HOST"
    return f"; or by the web interface of its name node: webhdfs://{host}:{WEB_PORT}/{path}"


def _unreadable(fs: Any, file: SourceFile, at: int, error: Exception, where: str) -> ConfigError:
    kinds = fs.protocol
    reason = _reason(error, kinds if isinstance(kinds, str) else kinds[0])
    return ConfigError(f"{where}: {file.path}: {reason} (at byte {at}, {TRIES} tries)")


def _reason(error: Exception, kind: str, done: str = "read") -> str:
    if lacking := denials.variables(error, kind):
        return f"access denied: {_line(error)}; set {lacking}"
    return f"cannot be {done}: {_line(error)}"


def _line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
