"""The application: locked dependencies (hashes checked), this project, and every architecture's CNI client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from felix_py.cni.build import ARCHITECTURES, build_client, client_of

SOURCE = Path(__file__).parents[1]
HOME = "opt/felix-py"

_ENTRY = """#!/{home}/bin/python
import sys

from felix_py.cli import main

sys.exit(main())
"""

_CLIENT_KEPT = {"__init__.py", "api_client.py", "api_response.py", "configuration.py", "exceptions.py", "rest.py"}
_KUBERNETES = {
    "__init__.py": '__version__ = "{version}"\n',
    "client/__init__.py": "from kubernetes.client.api_client import ApiClient\n"
    "from kubernetes.client.configuration import Configuration\n"
    "from kubernetes.client.exceptions import ApiException\n",
    "client/models/__init__.py": "",
}
"""The official client is used for its configuration alone (felix_py/datastore/official.py). Its packages import
every model of the API, of which nothing is used: these stand in for them."""


def install(root: Path, python: str) -> Path:
    """Install below ``root``, for the image's Python of that name; returns the folder of Python packages.

    Run it with a Python of the same minor version: extension modules are made for that.

    Raises:
        RuntimeError: another version of Python, or a client cannot be built.
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    running = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if running != python:
        raise RuntimeError(f"the image has {python}, this is {running}: make clean image PYTHON={python}")
    home = root / HOME
    site = home / "lib" / python / "site-packages"
    site.mkdir(parents=True)
    _pip("--require-hashes", "--no-deps", "--target", site, "-r", SOURCE / "requirements/run.txt")
    _remove(site / "bin")
    _pip("--no-deps", "--no-build-isolation", "--no-index", "--target", site, SOURCE)
    _trim(site)
    _strip(site)
    for old in (site / "felix_py/cni/client").iterdir():
        old.unlink()
    for architecture in ARCHITECTURES:
        build_client(client_of(architecture, site / "felix_py/cni/client"), architecture)
    (home / "bin").mkdir()
    (home / "bin/python").symlink_to(f"/usr/bin/{python}")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (home / "bin/felix-py").write_text(_ENTRY.format(home=HOME))
    (home / "bin/felix-py").chmod(0o755)
    return site


def _pip(*arguments: str | Path) -> None:
    # What is compiled here is compiled anew, and without debug information, which names a temporary folder.
    environment = {**os.environ, "CFLAGS": "-g0 -O2", "LDFLAGS": "-Wl,--build-id=none", "PIP_USE_PEP517": "1"}
    argv = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile",
            "--no-cache-dir", "--root-user-action=ignore", *map(str, arguments)]  # fmt: skip
    subprocess.run(argv, check=True, env=environment)


def _trim(site: Path) -> None:
    kubernetes = site / "kubernetes"
    version = next(site.glob("kubernetes-*.dist-info")).stem.partition("-")[2]
    for path in kubernetes.iterdir():
        if path.name not in ("client", "config", "utils", "py.typed"):
            _remove(path)
    for path in (kubernetes / "client").iterdir():
        if path.name not in _CLIENT_KEPT:
            _remove(path)
    for name, text in _KUBERNETES.items():
        (kubernetes / name).parent.mkdir(exist_ok=True)
        (kubernetes / name).write_text(text.format(version=version))
    for name in ("bin", "etc", "share"):
        shutil.rmtree(site / name, ignore_errors=True)
    for path in sorted(site.rglob("*")):
        if path.exists() and _is_unused(path):
            _remove(path)


def _is_unused(path: Path) -> bool:
    """Tests, sources of extension modules, types' stubs, and what pip notes of an installation."""
    if path.parent.suffix == ".dist-info":
        return path.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    if path.is_dir():
        return path.name in ("tests", "test", "__pycache__")
    return path.suffix in (".c", ".h", ".pyx", ".pxd", ".pxi", ".pyi", ".exe") or path.name.endswith("_test.py")


def _strip(site: Path) -> None:
    for module in sorted(site.rglob("*.so")):
        subprocess.run(["strip", "--strip-unneeded", str(module)], check=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
