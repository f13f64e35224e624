"""``python -m lab.apiserver``: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.apiserver.kubeconfig import Certificates, ensure_token, make_certificates, write_private
from lab.apiserver.server import ApiServer, Options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab.apiserver", description=__doc__)
    parser.add_argument(
        "--state-dir", type=Path, required=True, help="kubeconfig, token and certificates go here"
    )
    parser.add_argument("--listen", action="append", default=[], metavar="HOST:PORT", help="may be repeated")
    parser.add_argument("--fd", action="append", default=[], type=int, help="inherited listening socket")
    parser.add_argument(
        "--server", metavar="URL", help="address in the kubeconfig (default: the first one served)"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        help="bearer token, asked for with TLS only (default: made in the state directory)",
    )
    parser.add_argument("--tls", action="store_true", help="make a CA and a certificate in the state directory")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument(
        "--tls-host", action="append", default=[], help="further name or address of the certificate"
    )
    parser.add_argument("--service-cidr", default="10.96.0.0/16", help="comma-separated, one per family")
    parser.add_argument("--log-size", type=int, default=20_000, help="changes kept per resource for watches")
    parser.add_argument("--keep", action="store_true", help="keep all objects in the state directory")
    parser.add_argument("--lab", action="store_true", help="refuse what nothing in a lab acts on")
    return parser


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise SystemExit(f"--listen takes HOST:PORT, not {text!r}")
    return host.strip("[]"), int(port)


def _certificates(args: argparse.Namespace, listen: Sequence[tuple[str, int]]) -> Certificates | None:
    if args.tls_cert or args.tls_key:
        if not (args.tls_cert and args.tls_key):
            raise SystemExit("--tls-cert and --tls-key go together")
        return Certificates(args.tls_cert, args.tls_key)
    if not args.tls:
        return None
    hosts = ["localhost", "kubernetes", "127.0.0.1", "::1", *(host for host, _ in listen), *args.tls_host]
    return make_certificates(args.state_dir, list(dict.fromkeys(hosts)))


async def _serve(args: argparse.Namespace) -> None:
    listen = [_host_port(text) for text in args.listen]
    args.state_dir.mkdir(parents=True, exist_ok=True)
    certificates = _certificates(args, listen)
    # kubectl and client-go send no token over plain HTTP, so there everybody may.
    token = ensure_token(args.token_file or args.state_dir / "token") if certificates else ""
    options = Options(
        token=token,
        service_cidrs=args.service_cidr.split(","),
        log_size=args.log_size,
        journal=args.state_dir / "objects.jsonl" if args.keep else None,
        lab=args.lab,
        tls=certificates.context() if certificates else None,
    )
    server = ApiServer(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    urls = [await server.listen(*address) for address in listen]
    urls += [await server.serve_on(socket.socket(fileno=fd)) for fd in args.fd]
    if not urls:
        urls = [await server.listen("127.0.0.1", 0)]
    server.url = args.server or server.url
    ca = certificates.ca if certificates else None
    server.write_kubeconfig(args.state_dir / "kubeconfig", ca)
    write_private(args.state_dir / "ready", "".join(f"{url}\n" for url in urls).encode())
    print(*urls, sep="\n", flush=True)
    await stop.wait()
    await server.stop()


def main() -> int:
    """Run it; a wrong argument or a taken address is one clear line."""
    args = _parser().parse_args()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(args))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"lab.apiserver: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
