"""``python -m bench [NAME…]``: run all benchmarks, or those named. ``--help`` says what each one measures."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

NAMES = (
    "policy",
    "scale",
    "plan",
    "flows",
    "packets",
    "restore",
    "routes",
    "cni",
    "announce",
    "sidecar",
    "bfd",
    "bgp",
    "failover",
    "start",
    "react",
    "cluster",
    "reach",
)
"""Modules of this package, each with a docstring for the help and ``main(quick)``."""


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """The modules are imported only for the help that is asked for: they bring half the agent."""
        self.epilog = "\n\n".join(f"{name}: {importlib.import_module(f'bench.{name}').__doc__}" for name in NAMES)
        return super().format_help()


def main() -> int:
    """Run the chosen benchmarks one after the other."""
    parser = _Parser(
        prog="python -m bench",
        description="Benchmarks of felix-py. Figures are medians; ratios are against the row marked 1.00.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", help=f"one or more of: {', '.join(NAMES)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes and fewer runs, to see that all works"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.name if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    if os.geteuid() != 0:
        print("bench: run as root: the benchmarks need network namespaces of their own", file=sys.stderr)
        return 1
    from felix_py import log
    from tests.support.isolate import isolate_process

    log.configure(log.LogLevel.WARNING, log.LogFormat.TEXT)
    isolate_process()
    for name in arguments.name or NAMES:
        importlib.import_module(f"bench.{name}").main(quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
