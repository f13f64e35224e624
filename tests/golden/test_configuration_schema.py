"""``manifests/crds/felixpy.io_felixconfigurations.yaml`` is what the table of settings gives.

``UPDATE_GOLDEN=1 pytest tests/golden`` writes it anew; the diff is then the review.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.configuration_schema import definition

FILE = Path(__file__).parents[2] / "manifests" / "crds" / "felixpy.io_felixconfigurations.yaml"


def test_definition_is_what_the_table_gives() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        FILE.write_text(definition())
    assert definition() == FILE.read_text()
