"""The base: Python, both iptables backends, ipset and conntrack of Debian, without what only installing needs.

mmdebstrap resolves, downloads and verifies the packages. Their maintainer scripts are not run: what they would do
for these packages is done here, in a few lines that always have the same result. So there is neither a shell nor
dpkg nor perl in the image.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from hashlib import sha256
from pathlib import Path

INCLUDED = ("python3-minimal", "libpython3-stdlib", "iptables", "ipset", "conntrack", "ca-certificates",
            "libc-bin", "base-files", "netbase")  # fmt: skip
"""What is asked for; dependencies come with it."""

LEFT_OUT = {
    # For maintainer scripts only.
    "debconf", "dpkg", "tar", "mawk", "openssl", "libmd0", "libacl1", "libselinux1", "libpcre2-8-0",
    "libdebconfclient0", "readline-common",
    # Of modules of Python's standard library that are left out below: nis, dbm, readline, curses.
    "libnsl2", "libtirpc3", "libtirpc-common", "libgssapi-krb5-2", "libkrb5-3", "libkrb5support0", "libk5crypto3",
    "libcom-err2", "libkeyutils1", "libdb5.3", "libreadline8", "libncursesw6", "libtinfo6", "media-types",
}  # fmt: skip
"""Packages that others depend on, and the agent does not."""

SIDECAR_ID = 65532
"""User and group that the sidecar runs as: the number that images without root users have agreed on."""

_PROGRAMS = re.compile(r"python3(\.\d+)?|ip6?tables-.*(save|restore|nft|legacy)|xtables-.*-multi|ipset|conntrack")
_TOOLS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")
_FOLDERS = (
    "tmp", "run", "root", "proc", "sys", "dev", "var/tmp", "etc/ssl/certs", "usr/lib/ssl", "var/lib/dpkg",
)  # fmt: skip
_UNUSED_PYTHON = (
    "test", "idlelib", "lib2to3", "tkinter", "turtledemo", "turtle.py", "ensurepip", "venv", "pydoc_data",
    "curses", "dbm", "lib-dynload/nis.*", "lib-dynload/_dbm.*", "lib-dynload/readline.*", "lib-dynload/_curses*",
    "lib-dynload/_test*", "lib-dynload/_xxtest*", "lib-dynload/_ctypes_test*", "*/tests", "*/test",
)  # fmt: skip
_UNUSED = (
    "boot", "home", "media", "mnt", "opt", "srv", "usr/games", "usr/include", "usr/src", "var/backups",
    "var/local", "etc/apt", "etc/cron.daily", "etc/dpkg", "etc/default", "etc/ca-certificates", "etc/skel",
    "etc/profile.d", "etc/update-motd.d", "etc/fstab", "etc/motd", "lib/systemd", "usr/lib/locale",
    "usr/lib/valgrind", "usr/lib/debug", "usr/lib/binfmt.d", "usr/lib/*-linux-gnu/gconv",
    "usr/lib/*-linux-gnu/audit",
    *(f"usr/share/{name}" for name in (
        "applications", "base-files", "bash-completion", "binfmts", "bug", "debconf", "dict", "gcc", "gdb",
        "info", "lintian", "locale", "man", "menu", "perl5", "pixmaps", "python3")),
    *(f"usr/lib/python3*/{name}" for name in _UNUSED_PYTHON),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package in the image. ``digest``: SHA-256 of its .deb; ``licenses``: as it names them."""

    name: str
    version: str
    architecture: str
    source: str
    homepage: str
    digest: str
    licenses: tuple[str, ...]
    control: str


def make(root: Path, debs: Path, suite: str, mirror: str | None) -> list[Package]:
    """Make the base's file tree in ``root`` (needs root: chroot); returns the packages in it, sorted by name.

    ``debs`` gets the downloaded packages. ``mirror``: of Debian, by default those that mmdebstrap knows.

    Raises:
        subprocess.CalledProcessError: a tool failed; it has said why on standard error.
    """
    _download(debs, suite, mirror)
    root.mkdir(parents=True)
    packages = []
    for deb in sorted(debs.glob("*.deb")):
        control = _output("dpkg-deb", "-f", deb)
        if Parser().parsestr(control)["Package"] not in LEFT_OUT:
            _run("dpkg-deb", "-x", deb, root)
            packages.append((deb, control))
    known = [_package(deb, control, root) for deb, control in packages]
    _trim(root)
    _set_up(root, known)
    return known


def python_of(root: Path) -> str:
    """The name of the image's Python, such as ``python3.11``."""
    return (root / "usr/bin/python3").readlink().name


def compile_python(root: Path, *folders: str) -> None:
    """Compile Python's sources below ``root``, with its own interpreter.

    The code names no time of its source and is not compared with it (PEP 552, unchecked): it is always the same,
    and valid whatever the times of the files in the image. Without it each start would compile all anew, since
    the root file system is read-only.
    """
    # -B: what the interpreter itself would write while it starts goes by the time of the source.
    argv = ("-B", "-s", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash", *folders)
    environment = {"PYTHONHASHSEED": "0", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(["chroot", str(root), "/usr/bin/python3", *argv], check=True, env=environment)


def _download(debs: Path, suite: str, mirror: str | None) -> None:
    shutil.rmtree(debs, ignore_errors=True)
    debs.mkdir(parents=True)
    unused = debs / "unused.tar"
    options = (
        "--variant=extract",
        f"--include={','.join(INCLUDED)}",
        "--aptopt=APT::Install-Recommends 0",
        f"--extract-hook=sync-out /var/cache/apt/archives {debs}",
    )
    _run("mmdebstrap", "-q", *options, suite, unused, *([mirror] if mirror else []))
    unused.unlink()


def _package(deb: Path, control: str, root: Path) -> Package:
    fields = Parser().parsestr(control)
    name = fields["Package"]
    copyright_file = root / "usr/share/doc" / name / "copyright"
    return Package(
        name,
        fields["Version"],
        fields["Architecture"],
        (fields["Source"] or name).partition(" ")[0],
        fields["Homepage"] or "",
        sha256(deb.read_bytes()).hexdigest(),
        _licenses(copyright_file.read_text(errors="replace") if copyright_file.exists() else ""),
        control,
    )


def _licenses(text: str) -> tuple[str, ...]:
    """The short names of licences, of a copyright file in the machine-readable format (DEP 5); else none."""
    if "copyright-format/1.0" not in text:
        return ()
    return tuple(sorted(set(re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE))))


def _trim(root: Path) -> None:
    for pattern in _UNUSED:
        for path in root.glob(pattern):
            _remove(path)
    for path in (root / "usr/share/doc").glob("*/*"):
        if path.name != "copyright":
            _remove(path)
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin"):
        for path in (root / folder).glob("*"):
            if not _PROGRAMS.fullmatch(path.name) and path.name != "ldconfig":
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _set_up(root: Path, packages: list[Package]) -> None:
    """What the packages' maintainer scripts would have done."""
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for tool in _TOOLS:  # update-alternatives
        family, _, verb = tool.partition("-")
        (root / "usr/sbin" / tool).symlink_to(f"{family}-nft{'-' if verb else ''}{verb}")
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))  # update-ca-certificates
    bundle = "".join(path.read_text().rstrip("\n") + "\n" for path in certificates)
    (root / "etc/ssl/certs/ca-certificates.crt").write_text(bundle)
    (root / "usr/lib/ssl/cert.pem").symlink_to("/etc/ssl/certs/ca-certificates.crt")
    shutil.rmtree(root / "usr/share/ca-certificates")
    _write_users(root)
    # Where scanners look for packages.
    installed = "\\1\nStatus: install ok installed"
    stanzas = (re.sub("^(Package: .*)$", installed, one.control, count=1, flags=re.MULTILINE) for one in packages)
    (root / "var/lib/dpkg/status").write_text("\n".join(f"{stanza.strip()}\n" for stanza in stanzas))
    _run("ldconfig", "-r", root)
    shutil.rmtree(root / "var/cache/ldconfig", ignore_errors=True)  # times and inodes
    compile_python(root, f"/usr/lib/{python_of(root)}")


def _write_users(root: Path) -> None:
    etc = root / "etc"
    users = {"root": 0, "felix-py-bgp": SIDECAR_ID, "nobody": 65534}
    homes = {"root": "/root"}
    (etc / "passwd").write_text(
        "".join(f"{n}:x:{i}:{i}:{n}:{homes.get(n, '/nonexistent')}:/usr/sbin/nologin\n" for n, i in users.items())
    )
    (etc / "group").write_text("".join(f"{n if n != 'nobody' else 'nogroup'}:x:{i}:\n" for n, i in users.items()))
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


def _run(*argv: str | Path) -> None:
    subprocess.run([*map(str, argv)], check=True)


def _output(*argv: str | Path) -> str:
    return subprocess.run([*map(str, argv)], check=True, stdout=subprocess.PIPE, text=True).stdout


def files(root: Path) -> Iterator[Path]:
    """All regular files below ``root``."""
    return (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
