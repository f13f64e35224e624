"""The BGP configuration as a file on the node, in YAML."""

from __future__ import annotations

from pathlib import Path

from bgp.fields import BGPConfigError
from bgp.model import SpeakerConfig, parse_bgp_config


def load_bgp_config(path: Path, *, node: str = "", router_id: str | None = None) -> SpeakerConfig:
    """Read the user's YAML file; ``router_id`` (an IPv4 address of the node) is the default of its routerID.

    ``node`` is the node's name.

    Raises BGPConfigError for any problem with the file.
    """
    import yaml

    try:
        # Not the parser in C, which deep nesting crashes together with the process.
        document = yaml.load(path.read_bytes(), yaml.SafeLoader)
        return parse_bgp_config(
            document, router_id=router_id, node=node, read_text=lambda name: Path(name).read_text()
        )
    except RecursionError:
        raise BGPConfigError(f"{path}: nested too deeply") from None
    # ValueError: a month 13, a number of 5,000 digits, a zero byte in a file's name.
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BGPConfigError(f"{path}: {error}") from None
