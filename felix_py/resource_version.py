"""resourceVersions of the Kubernetes API."""


def is_older(version: str, than: str) -> bool:
    """Whether a version precedes another. Decimal versions of one kind are comparable (KEP-5504)."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
