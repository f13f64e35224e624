"""Programs of ours that are forked from a process that has loaded them all, in place of started ones.

Python takes most of a second of CPU to load an agent, and tests start hundreds. Once :func:`install` has put
:class:`Popen` in place of ``subprocess.Popen``, ``felix-py …`` and our ``python -m …`` come from the **nursery**,
a process of one thread that has loaded everything and done nothing; what these start in turn is forked as well.
All else is really started, and so is what asks for another interpreter than the nursery's (``PYTHONPATH``,
``LD_PRELOAD``), and what a test starts that is marked ``started``.

Workers of pytest-xdist are forked, too, and each with a nursery of its own.

A forked program has what a started one has: arguments, environment, files, folder, namespaces, session and
signals, as /proc shows them, too. It is the child of the process that asked for it. It shares with its siblings
the seed of hashes and the memory that the nursery has filled.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lab.namespaces import CLONE_NEWNET, CLONE_NEWNS, setns, unshare
from tests.support.forked import Start, can_show, fork

_ROOT = Path(__file__).parents[2]
_SCRIPT = str(Path(sys.executable).with_name("felix-py"))
_BRIDGE = str(_ROOT / "bgp" / "bridge.py")
_PACKAGES = frozenset({"bgp", "felix_py", "lab"})
_LOADED_LATE = ("exabgp.application.main", "exabgp.application.server", "iptc", "pyroute2")
"""What our programs load beside our packages, and only when they need it."""

_WORKER = [sys.executable, "-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]
"""How execnet starts the worker of pytest-xdist."""
_INTERPRETER = ("PYTHON", "LD_")
_HARMLESS = frozenset({"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"})
"""Beginnings of variables that change what an interpreter is, but for these."""

_PR_SET_CHILD_SUBREAPER = 36
_MOST = 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def _interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    found = {name: value for name, value in environment.items() if name.startswith(_INTERPRETER)}
    return {name: value for name, value in found.items() if name not in _HARMLESS}


# --- who asks ----------------------------------------------------------------------------------------


class Nursery:
    """One process that programs are forked from. It ends with :meth:`close`, or with this process."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """``environment``: variables beside those of this process."""
        whole = {**os.environ, **(environment or {})}
        self.interpreter = _interpreter(whole)
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-c", f"import {__name__} as it; it.serve()", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                argv, env=whole, cwd=_ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What was forked goes on."""
        self._socket.close()
        self._process.terminate()
        self._process.wait()

    def fork(self, start: Start, given: Sequence[int]) -> int:
        """Fork a program, which becomes a child of this process.

        Raises:
            OSError: it could not be made what it was to be.
        """
        with self._lock:
            # The program's parent ends at once, so that it goes to whoever is the nearest subreaper.
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                return self._asked(start, given)
            finally:
                _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)

    def _asked(self, order: Start | None, given: Sequence[int]) -> int:
        socket.send_fds(self._socket, [pickle.dumps(order)], given)
        answer = self._socket.recv(_MOST)
        if not answer:
            raise OSError("the nursery has died")
        said: int | str = pickle.loads(answer)  # noqa: S301 - the nursery is ours
        if isinstance(said, str):
            raise OSError(said)
        return said


class _Inherited(Nursery):
    """A worker's, forked with it, before it had threads and went into namespaces of its own."""

    def __init__(self, asked: socket.socket, pid: int) -> None:
        self.interpreter = _Here.interpreter
        self._lock = threading.Lock()
        self._socket, self._pid = asked, pid
        self._joined = False

    def fork(self, start: Start, given: Sequence[int]) -> int:
        with self._lock:
            if not self._joined and os.geteuid() == 0:
                with open("/proc/self/ns/mnt") as mounts:
                    self._asked(None, [mounts.fileno()])
            self._joined = True
        return super().fork(start, given)

    def close(self) -> None:
        self._socket.close()
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)


class _Here:
    """In a forked program: what it starts is forked from itself, which has loaded everything, too."""

    interpreter = _interpreter(os.environ)


_nursery: Nursery | _Here | None = None
_making = threading.Lock()
_on = True


def install() -> None:
    """Have programs of ours forked, whoever starts them by ``subprocess`` in this process, if the kernel can."""
    if can_show():
        subprocess.Popen = Popen  # type: ignore[misc]


@contextmanager
def really_started() -> Iterator[None]:
    """No program is forked for the time of the context."""
    global _on  # noqa: PLW0603
    _on, before = False, _on
    try:
        yield
    finally:
        _on = before


def close() -> None:
    """End the nursery of this process, if it has one."""
    global _nursery  # noqa: PLW0603 - one for each process
    if isinstance(_nursery, Nursery):
        _nursery.close()
    _nursery = None


def _default() -> Nursery | _Here:
    global _nursery  # noqa: PLW0603
    with _making:
        if _nursery is None:
            _nursery = Nursery()
        return _nursery


class Popen(subprocess.Popen[Any]):
    """As ``subprocess.Popen``; ``nursery``: where a program of ours comes from, if not from that of all tests."""

    def __init__(self, *args: Any, nursery: Nursery | None = None, **options: Any) -> None:
        self._nursery = nursery
        super().__init__(*args, **options)

    def _execute_child(self, args: Any, executable: Any, *rest: Any) -> None:
        """What ``subprocess`` calls to make the process, with all of its pipes open."""
        preexec_fn, close_fds, pass_fds, cwd, env, *_ = rest
        *_, shell, in_, _1, _2, out, _3, error, _4, gid, gids, uid, umask, session, group = rest
        unusual = executable or shell or not close_fds or umask != -1 or (gid, gids, uid) != (None, None, None)
        with ExitStack() as stack:
            found = self._program(args, env, preexec_fn, stack) if _on and not unusual else None
            if found is None:
                super()._execute_child(args, executable, *rest)  # type: ignore[misc]
                return
            argv, spaces = found
            start = Start(
                tuple(argv),
                dict(os.environ if env is None else env),
                None if cwd is None else os.fspath(cwd),
                tuple(kind for kind, _ in spaces),
                (0, 1, 2, *pass_fds),
                session,
                group,
            )
            folder = _opened(".", stack)
            streams = (fd if fd != -1 else number for number, fd in enumerate((in_, out, error)))
            given = [folder, *(fd for _, fd in spaces), *streams, *pass_fds]
            self.pid = self._fork(start, given, preexec_fn)
        self._child_created = True
        self._close_pipe_fds(*rest[8:14])  # type: ignore[attr-defined]

    def _program(
        self, args: Any, env: Any, preexec_fn: Any, stack: ExitStack
    ) -> tuple[list[str], list[tuple[int, int]]] | None:
        """A program's arguments and the namespaces that it is to be in, if it is one that can be forked."""
        if isinstance(args, str | bytes | os.PathLike):
            return None
        environment: Mapping[str, str] = os.environ if env is None else env
        argv, paths = _entered([os.fsdecode(word) for word in args])
        if argv and argv[0] == "felix-py":
            argv[0] = shutil.which("felix-py", path=environment.get("PATH")) or argv[0]
        if not _ours(argv):
            return None
        nursery = self._nursery or _default()
        here = isinstance(nursery, _Here)
        if _interpreter(environment) != nursery.interpreter or (preexec_fn and not here):
            return None
        if here and threading.active_count() > 1:
            return None
        if not here and os.geteuid() == 0:
            paths = [(CLONE_NEWNET, "/proc/thread-self/ns/net"), *paths]
        try:
            return argv, [(kind, _opened(path, stack)) for kind, path in paths]
        except OSError:
            return None  # nsenter says it better

    def _fork(self, start: Start, given: list[int], preexec_fn: Any) -> int:
        nursery = self._nursery or _default()
        if isinstance(nursery, Nursery):
            return nursery.fork(start, given)
        return fork(start, given, preexec_fn, orphan=False)


def _ours(argv: list[str]) -> bool:
    match argv:
        case [python, "-m", module, *_]:
            return python == sys.executable and module.partition(".")[0] in _PACKAGES
        case [python, "-I", "-S", script, *_]:
            return python == sys.executable and script == _BRIDGE
    return argv[:1] == [_SCRIPT] or argv == _WORKER


def _opened(path: str, stack: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _entered(argv: list[str]) -> tuple[list[str], list[tuple[int, str]]]:
    """A command without the nsenter(1) of :meth:`lab.lab.Lab.enter`, and the namespaces that it is to be in."""
    match argv:
        case ["nsenter", "-t", pid, "-m", "-n", "--", *rest]:
            return rest, [(CLONE_NEWNET, f"/proc/{pid}/ns/net"), (CLONE_NEWNS, f"/proc/{pid}/ns/mnt")]
    return argv, []


# --- the nursery itself ------------------------------------------------------------------------------


def _load_all() -> None:
    for package in _PACKAGES:
        folders = importlib.import_module(package).__path__
        for found in pkgutil.walk_packages(folders, f"{package}."):
            importlib.import_module(found.name)
    for name in (*_LOADED_LATE, "pytest"):
        importlib.import_module(name)
    # It loads the official client's models as it is made.
    importlib.import_module("lab.apiserver.server").ApiServer()


def serve() -> None:
    """Be the nursery: the only argument is its socket's number."""
    global _nursery  # noqa: PLW0603
    _nursery = _Here()
    install()
    _load_all()
    if os.geteuid() == 0:
        unshare(CLONE_NEWNET)  # else it would keep the namespace of the test that has started it
    gc.collect()
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        _attend(asked)


def _attend(asked: socket.socket) -> None:
    """Fork what is ordered, until nobody is left to order."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the tests
    while True:
        order, given, _, _ = socket.recv_fds(asked, _MOST, 64)
        if not order:
            return
        start: Start | None = pickle.loads(order)  # noqa: S301 - from the tests
        answer: int | str = 0
        try:
            if start is None:  # to come into a worker's namespace
                setns(given[0], CLONE_NEWNS)
            else:
                breed = _breed if list(start.argv) == _WORKER else None
                answer = fork(start, given, breed, orphan=True)
        except OSError as error:
            answer = str(error)
        for fd in given:
            os.close(fd)
        asked.send(pickle.dumps(answer))


def _breed() -> None:
    """In a worker that is to be: leave it a nursery."""
    global _nursery  # noqa: PLW0603
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if pid := os.fork():
        theirs.close()
        _nursery = _Inherited(ours, pid)
        return
    try:
        # The worker's streams are its own: who reads them waits for their end.
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nothing, number)
        os.closerange(3, theirs.fileno())
        os.closerange(theirs.fileno() + 1, 1 << 16)
        _attend(theirs)
    finally:
        os._exit(0)
