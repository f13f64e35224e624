"""``python -m bench [NAME…]``: run all benchmarks, or those named. ``--help`` says what each one measures."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

NAMES = ("policy", "restore", "routes", "cni", "announce")


def main() -> int:
    """Run the chosen benchmarks one after the other; each is a module with a docstring and ``main(quick)``."""
    modules = {name: importlib.import_module(f"bench.{name}") for name in NAMES}
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Benchmarks of felix-py. Figures are medians; ratios are against the row marked 1.00.",
        epilog="\n\n".join(f"{name}: {module.__doc__}" for name, module in modules.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", help=f"one or more of: {', '.join(NAMES)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes and fewer runs, to see that all works"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.name if name not in modules]
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
        modules[name].main(quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
