"""Names of the objects that agents make: IPAMBlock and BlockAffinity (felixpy.io/v1alpha1)."""

from __future__ import annotations

import hashlib

NODE_LABEL = "felixpy.io/node"
"""Label of a BlockAffinity: an agent watches its own node's alone."""

_LONGEST_NAME, _LONGEST_LABEL = 253, 63
_HASH = 16


def block_name(cidr: str) -> str:
    """The name of a block: one for each canonical CIDR, so that the API server lets one node alone create it."""
    name = cidr.replace(".", "-").replace(":", "-").replace("/", "-")
    return f"0{name}" if name.startswith("-") else name


def affinity_name(node: str, cidr: str) -> str:
    """The name of a node's BlockAffinity of a block."""
    block = block_name(cidr)
    return f"{_shortened(node, _LONGEST_NAME - len(block) - 1)}-{block}"


def node_label(node: str) -> str:
    """The value of :data:`NODE_LABEL`: the node's name, or one of a hash if that is too long for a label."""
    return _shortened(node, _LONGEST_LABEL)


def _shortened(node: str, most: int) -> str:
    if len(node) <= most:
        return node
    return f"{node[: most - _HASH - 1]}-{hashlib.sha256(node.encode()).hexdigest()[:_HASH]}"
