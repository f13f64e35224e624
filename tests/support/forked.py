"""A process that becomes another program of ours without loading it: what exec(2) and Python's start do."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import fcntl
import gc
import importlib.util
import io
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lab.namespaces import CLONE_NEWNS, setns

_PR_SET_NAME = 15
_PR_SET_MM = 35
_PR_SET_MM_MAP, _PR_SET_MM_MAP_SIZE = ctypes.c_ulong(14), ctypes.c_ulong(15)
_NONE = ctypes.c_ulong(0)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sbrk.restype = ctypes.c_uint64
_shown: list[object] = []
"""What /proc shows of this process, and the streams of the process that it was: they are never freed."""


@dataclass(frozen=True)
class Start:
    """A program to become.

    ``argv`` begins with the path of a script, with or without ``PYTHON -I -S`` before it, or is
    ``PYTHON -m MODULE …`` or ``PYTHON -u -c CODE``.
    ``spaces`` are the kinds of the namespaces to enter, ``files`` the numbers that open files get. Descriptors
    come with it: of the working directory, of the namespaces and of the files, in this order.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    folder: str | None
    spaces: tuple[int, ...]
    files: tuple[int, ...]
    new_session: bool
    group: int


def fork(start: Start, given: Sequence[int], prepare: Callable[[], object] | None, *, orphan: bool) -> int:
    """Fork the program: its process id, once it is all that it was to become, but for having run anything.

    ``orphan``: it is no child of this process, but of its nearest subreaper (prctl(2)).

    Raises:
        OSError: it could not become that.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        if orphan and os.fork():
            os._exit(0)
        _become(start, given, prepare, writing)
    os.close(writing)
    if orphan:
        os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        number, _, failure = pipe.read().decode().partition(" ")
    if not number or failure:
        if not orphan:
            os.waitpid(pid, 0)
        raise OSError(f"{start.argv}: {failure or 'has died'}")
    return int(number)


def _become(start: Start, given: Sequence[int], prepare: Callable[[], object] | None, telling: int) -> NoReturn:
    # What belonged to the other process lives on, whether anybody refers to it or not: it is not cleaned up here.
    gc.freeze()
    try:
        _enter(start, given)
        if start.new_session:
            os.setsid()
        if start.group >= 0:
            os.setpgid(0, start.group)
        telling = _files(start, given, telling)
        _signals()
        if prepare is not None:
            prepare()
        code = _load(start)
        os.write(telling, f"{os.getpid()} ".encode())
        os.close(telling)
    except BaseException as error:
        os.write(telling, f"{os.getpid()} {error!r}".encode())
        os._exit(1)
    _end(_run(code))


def _enter(start: Start, given: Sequence[int]) -> None:
    os.fchdir(given[0])
    if start.folder is not None:
        os.chdir(start.folder)
    for fd, kind in zip(given[1:], start.spaces, strict=False):
        setns(fd, kind)
    if CLONE_NEWNS in start.spaces:
        os.chdir("/")


def _files(start: Start, given: Sequence[int], telling: int) -> int:
    """Open files at their numbers, and no others; the descriptor ``telling``'s new number."""
    above = max(start.files) + 1
    *moved, telling = (fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in (*given[1 + len(start.spaces) :], telling))
    for fd, number in zip(moved, start.files, strict=True):
        os.dup2(fd, number)
    wanted = {*start.files, telling}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in wanted:
            with suppress(OSError):  # the listing's own
                os.close(fd)
    return telling


def _streams() -> None:
    _shown.extend((sys.stdin, sys.stdout, sys.stderr))
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    out = open(1, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(out, line_buffering=os.isatty(1), write_through=unbuffered)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def _signals() -> None:
    """What is handled is not after an exec(2); Python then handles SIGINT, unless it is ignored."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _load(start: Start) -> types.CodeType:
    """What to run, once Python and the kernel know of it."""
    os.environ.clear()
    os.environ.update(start.env)
    time.tzset()
    _streams()
    asyncio._set_running_loop(None)
    gc.enable()
    module = types.ModuleType("__main__")
    if start.argv[1:2] == ("-m",):
        code, path = _module(start.argv[2], module)
        sys.argv[:] = [path, *start.argv[3:]]
        sys.orig_argv[:] = start.argv
        sys.path[0] = start.folder or ""
    elif start.argv[1:3] == ("-u", "-c"):
        code, path = compile(start.argv[3], "<string>", "exec"), ""
        sys.argv[:] = start.argv[2:3]
        sys.orig_argv[:] = start.argv
        sys.path[0] = ""
    else:
        isolated = start.argv[1:3] == ("-I", "-S")
        words = start.argv[3:] if isolated else start.argv
        path = words[0]
        code = compile(Path(path).read_bytes(), path, "exec")
        sys.argv[:] = words
        sys.orig_argv[:] = start.argv if isolated else [sys.executable, *start.argv]
        sys.path[0] = str(Path(path).parent)
    module.__file__ = path
    sys.modules["__main__"] = module
    _show(sys.orig_argv, [f"{name}={value}" for name, value in start.env.items()])
    _libc.prctl(_PR_SET_NAME, os.fsencode(Path(start.argv[0]).name))
    return code


def _module(name: str, module: types.ModuleType) -> tuple[types.CodeType, str]:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or spec.loader is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, spec.parent
    code: types.CodeType = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    return code, spec.origin


class _Map(ctypes.Structure):
    """``struct prctl_mm_map`` (linux/prctl.h): where parts of a process's memory are."""

    _fields_ = (
        *((f"{part}_{end}", ctypes.c_uint64) for part in ("code", "data") for end in ("start", "end")),
        *((name, ctypes.c_uint64) for name in ("start_brk", "brk", "start_stack")),
        *((f"{part}_{end}", ctypes.c_uint64) for part in ("arg", "env") for end in ("start", "end")),
        ("auxv", ctypes.c_uint64),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )


def can_show() -> bool:
    """Whether the kernel lets a process say what /proc shows of it (CONFIG_CHECKPOINT_RESTORE)."""
    size = ctypes.c_uint(0)
    return not _libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP_SIZE, ctypes.byref(size), _NONE, _NONE)


def _show(argv: Sequence[str], environment: Sequence[str]) -> None:
    """Have /proc/PID/cmdline and environ say so (prctl(2), PR_SET_MM_MAP)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()

    def field(number: int) -> int:
        """By its number in proc_pid_stat(5)."""
        return int(fields[number - 3])

    code, data = (field(26), field(27)), (field(45), field(46))
    found = _Map(*code, *data, field(47), _libc.sbrk(0), field(28), auxv=0, auxv_size=0, exe_fd=0xFFFFFFFF)
    for name, words in (("arg", argv), ("env", environment)):
        text = b"".join(os.fsencode(word) + b"\0" for word in words)
        kept = ctypes.create_string_buffer(text, len(text))
        _shown.append(kept)
        setattr(found, f"{name}_start", ctypes.addressof(kept))
        setattr(found, f"{name}_end", ctypes.addressof(kept) + len(text))
    if _libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(found), ctypes.c_ulong(ctypes.sizeof(found)), _NONE):
        raise OSError(ctypes.get_errno(), "prctl: PR_SET_MM_MAP")


def _run(code: types.CodeType) -> int:
    """As Python runs a main module: the exit code."""
    try:
        exec(code, vars(sys.modules["__main__"]))  # noqa: S102 - it is our own program
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """As Python ends: threads, what was to be done at exit, output."""
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code & 0xFF)
