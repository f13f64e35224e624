"""Watches the xtables lock, which every legacy iptables tool takes: legacy rules have no netlink events.

Source: fanotify(7). Unlike inotify it names the process, so that our own can be ignored.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Container
from pathlib import Path

LOCK = Path("/run/xtables.lock")

_CLOEXEC, _NONBLOCK = 1, 2
_MARK_ADD = 1
_CLOSE = 0x08 | 0x10
"""FAN_CLOSE_WRITE and FAN_CLOSE_NOWRITE: a tool has finished."""

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
"""The kernel opens the file for each event that is read; without a descriptor for it, the event is lost."""

_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")
_BUFFER = 64 * _EVENT.size
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)


class LockWatch:
    """Tells whether other processes than ours had the lock open; its file descriptor becomes readable then."""

    def __init__(self, own: Container[int]) -> None:
        """``own``: pids of our processes.

        Raises:
            OSError: the kernel has no fanotify, or we may not use it.
        """
        self._own = own
        self._fd = _checked(_libc.fanotify_init(_CLOEXEC | _NONBLOCK, os.O_RDONLY | os.O_CLOEXEC))
        try:
            self.renew()
        except BaseException:
            self.close()
            raise

    def renew(self) -> None:
        """Watch the file that has the lock's name now. Idempotent.

        Raises:
            OSError: the file can neither be opened nor created, or not be watched.
        """
        os.close(os.open(LOCK, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))  # as the tools do
        _checked(_libc.fanotify_mark(self._fd, _MARK_ADD, _CLOSE, _AT_FDCWD, os.fsencode(LOCK)))

    def close(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """For select(2) and its like."""
        return self._fd

    def used_by_others(self) -> bool:
        """Take the events; returns whether another process than ours has used the lock.

        Raises:
            OSError: the events cannot be read.
        """
        others = False
        while True:
            try:
                data = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return others
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                return True  # whose event it was cannot be told, and it is taken
            for at in range(0, len(data) - _EVENT.size + 1, _EVENT.size):
                _, _, _, _, _, file, pid = _EVENT.unpack_from(data, at)
                if file >= 0:
                    os.close(file)
                others = others or not (pid in self._own or pid == os.getpid())


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
