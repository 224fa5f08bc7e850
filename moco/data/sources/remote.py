"""Files here or at a URL: read whole, in ranges or through, with one policy for what breaks on the way.

fsspec's file systems raise whatever the libraries below them raise. Here all of it becomes OSError: FileNotFoundError
where there is no such file, PermissionError where it may not be read, and for the rest, after `WAITS`, one of whose
message is a line.
"""

import errno
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from moco.runtime.errors import UserError, one_line

WAITS = (0.5, 2.0)
"""Seconds before what failed is tried again: twice, so three times in all."""
_RANGE = 5 << 20
"""Bytes of a request, where a file is read through."""
T = TypeVar("T")


def is_remote(url: str) -> bool:
    return "://" in url


def open_file(url: str) -> IO[bytes]:
    """A path or URL, to read and to seek in. Raises OSError, also while it is read."""
    return io.BufferedReader(RemoteFile(url), _RANGE) if is_remote(url) else Path(url).open("rb")


def read_file(url: str) -> bytes:
    """The content of a small file. Raises OSError."""
    if not is_remote(url):
        return Path(url).read_bytes()
    filesystem, path = _filesystem(url)
    return bytes(retried(lambda: filesystem.cat_file(path)))


def read_if_there(url: str) -> bytes | None:
    """The content of a small file, or None if it is not there. Raises OSError.

    What may not be read counts as not there: so does a bucket answer that may not be listed.
    """
    try:
        return read_file(url)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes start..end-1 of what is at a URL, fewer where it ends before. Raises OSError.

    Raises UserError if the server sends the whole file instead.
    """
    filesystem, path = _filesystem(url)
    data = bytes(retried(lambda: filesystem.cat_file(path, start=start, end=end)))
    if len(data) > end - start:
        raise UserError(
            f"{url}: the server ignores HTTP Range requests and sends whole files: copy the shards to a disk, or use "
            "a server that supports ranges"
        )
    return data


def find_files(pattern: str) -> list[str]:
    """The URLs that match a pattern with * or ? or [...], sorted. Raises OSError."""
    filesystem, path = _filesystem(pattern)
    return sorted(filesystem.unstrip_protocol(found) for found in retried(lambda: filesystem.glob(path)))


class RemoteFile(io.RawIOBase):
    """What is at a URL, read in ranges: after a break, reading goes on at the byte that was to come next.

    Raises OSError and UserError, as `read_range`.
    """

    def __init__(self, url: str) -> None:
        filesystem, path = _filesystem(url)
        size = retried(lambda: filesystem.info(path))["size"]
        if size is None:
            raise OSError(errno.EIO, "the server does not send the file's size", url)
        self.url, self.size, self._at = url, int(size), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self.size)
        if self._at >= end:
            return 0
        data = read_range(self.url, self._at, end)
        if not data:
            raise OSError(errno.EIO, f"ends at byte {self._at} of {self.size}", self.url)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def retried(act: Callable[[], T]) -> T:
    """What `act` returns, tried again after `WAITS` if it fails for a reason that may pass. Raises OSError."""
    for wait in (*WAITS, None):
        try:
            return act()
        except Exception as error:  # aiohttp's, botocore's, gcsfs's: of no common kind
            known = _as_os_error(error)
            if wait is None or isinstance(known, FileNotFoundError | PermissionError) or _is_refusal(error):
                raise known from error
            time.sleep(wait)
    raise AssertionError


def _as_os_error(error: Exception) -> OSError:
    if isinstance(error, FileNotFoundError) and not _is_lost_connection(error.__cause__):
        return FileNotFoundError(errno.ENOENT, "there is no such file")
    cause = _cause(error)
    if isinstance(cause, PermissionError) or _status(cause) in (401, 403):
        return PermissionError(errno.EACCES, f"may not be read: {_named(cause)}")
    return OSError(errno.EIO, _named(cause))


def _cause(error: BaseException) -> BaseException:
    """What fsspec's HTTP takes for a file that is not there; of another error, itself."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _is_lost_connection(cause: BaseException | None) -> bool:
    """Whether this is why fsspec's HTTP takes a file not to be there; only 404 and 410 mean that it is not."""
    if cause is None or _status(cause) in (404, 410):
        return False
    return isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")


def _is_refusal(error: BaseException) -> bool:
    """Whether the server will answer the same again: 4xx, but for those that ask to come later."""
    status = _status(_cause(error))
    return status is not None and 400 <= status < 500 and status not in (408, 425, 429)


def _status(error: BaseException) -> int | None:
    """The HTTP status that is the error."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _named(error: BaseException) -> str:
    if (status := _status(error)) is not None:
        return f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    words, name = one_line(error), type(error).__name__
    return words if words == name or (isinstance(error, OSError) and error.strerror) else f"{name}: {words}"


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises UserError if a package is missing."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        raise UserError(
            f"{url}: needs a package that is not installed ({one_line(error)}): pip install 'momentum-contrast[remote]'"
        ) from error
    except ValueError as error:
        raise UserError(f"{url}: {one_line(error)}") from error
