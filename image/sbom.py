"""The list of what is in the image, as SPDX 2.3 in JSON: packages of Debian and Python, and what clients link."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from image.base import Package

NOTHING = "NOASSERTION"

_DEBIAN = {
    "Expat": "MIT",
    "BSD-2-clause": "BSD-2-Clause",
    "BSD-3-clause": "BSD-3-Clause",
    "BSD-4-clause": "BSD-4-Clause",
    "Apache-2.0": "Apache-2.0",
    "Artistic": "Artistic-1.0-Perl",
    "ISC": "ISC",
    "MPL-2.0": "MPL-2.0",
    "zlib": "Zlib",
    "Zlib": "Zlib",
    **{f"{kind}GPL-{n}": f"{kind}GPL-{n if '.' in n else n + '.0'}-only"
       for kind in ("", "L") for n in ("2", "2.0", "2.1", "3", "3.0")},
    **{f"{kind}GPL-{n}+": f"{kind}GPL-{n if '.' in n else n + '.0'}-or-later"
       for kind in ("", "L") for n in ("2", "2.0", "2.1", "3", "3.0")},
}  # fmt: skip
"""Short names of Debian's copyright files (DEP 5, "License specification") that SPDX has an identifier for."""

_PYTHON = {
    "MIT": "MIT", "MIT License": "MIT", "The MIT License": "MIT",
    "Apache 2.0": "Apache-2.0", "Apache-2.0": "Apache-2.0", "Apache License 2.0": "Apache-2.0",
    "Apache License Version 2.0": "Apache-2.0", "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause", "BSD-3-Clause": "BSD-3-Clause", "3-Clause BSD License": "BSD-3-Clause",
    "BSD-2-Clause": "BSD-2-Clause", "ISC License (ISCL)": "ISC", "ISC": "ISC", "MPL-2.0": "MPL-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "Python Software Foundation License": "PSF-2.0",
}  # fmt: skip
"""Values of the metadata's License field, and last words of its classifiers."""


@dataclass(slots=True)
class Entry:
    """A package as the document lists it. ``license``: an SPDX expression; ``refs``: texts of its own names."""

    name: str
    version: str
    purl: str
    license: str = NOTHING
    comment: str = ""
    digest: str = ""
    homepage: str = ""
    supplier: str = NOTHING
    refs: dict[str, str] = field(default_factory=dict)


def of_debian(package: Package, suite: str) -> Entry:
    """A Debian package."""
    refs: dict[str, str] = {}
    where = f"/usr/share/doc/{package.name}/copyright in the image"
    found = {_debian_license(name, where, refs) for name in package.licenses}
    arguments = f"arch={package.architecture}&distro={suite}&upstream={quote(package.source)}"
    return Entry(
        package.name,
        package.version,
        f"pkg:deb/debian/{quote(package.name)}@{quote(package.version, safe='')}?{arguments}",
        " AND ".join(sorted(found)) or NOTHING,
        f"All of it: {where}",
        package.digest,
        package.homepage,
        "Organization: Debian",
        refs,
    )


def of_python(site: Path) -> list[Entry]:
    """The Python packages in a folder, this project among them, by their metadata."""
    found = []
    for folder in sorted(site.glob("*.dist-info")):
        fields = Parser().parsestr((folder / "METADATA").read_text())
        name = re.sub(r"[-_.]+", "-", fields["Name"]).lower()
        where = f"All of it: /{site.relative_to(site.parents[4])}/{folder.name} in the image"
        version = fields["Version"]
        purl, homepage = f"pkg:pypi/{name}@{version}", fields["Home-page"] or ""
        found.append(Entry(name, version, purl, _python_license(fields), where, homepage=homepage))
    return found


def of_linked(names: Iterable[str]) -> list[Entry]:
    """Libraries of the building machine that are linked into programs: Debian packages of those names."""
    found = []
    for name in names:
        argv = ["dpkg-query", "-W", "-f", "${Version} ${Architecture}", name]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            version, architecture = done.stdout.split()
            purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}"
            comment = "Linked into the CNI client (felix-py-cni)"
            found.append(Entry(name, version, purl, comment=comment, supplier="Organization: Debian"))
    return found


def document(name: str, version: str, created: str, digest: str, entries: Sequence[Entry]) -> str:
    """The document as text. ``created``: RFC 3339, UTC; ``digest``: of the image's manifest."""
    purl = f"pkg:oci/{name}@{quote(digest, safe='')}"
    image = {
        **_package("SPDXRef-image", Entry(name, version, purl, "Apache-2.0")),
        "primaryPackagePurpose": "CONTAINER",
        "checksums": [{"algorithm": "SHA256", "checksumValue": digest.removeprefix("sha256:")}],
    }
    packages = {_id(entry): _package(_id(entry), entry) for entry in entries}
    refs = {ref: text for entry in entries for ref, text in entry.refs.items()}
    whole = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{name}-{version}",
        "documentNamespace": f"https://spdx.org/spdxdocs/{name}-{version}-{digest.removeprefix('sha256:')}",
        "creationInfo": {"created": created, "creators": [f"Tool: {name}-image-{version}"]},
        "packages": [image, *(packages[key] for key in sorted(packages))],
        "relationships": [
            _relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(_relation("SPDXRef-image", "CONTAINS", key) for key in sorted(packages)),
        ],
        "hasExtractedLicensingInfos": [
            {"licenseId": ref, "extractedText": text, "name": ref.removeprefix("LicenseRef-")}
            for ref, text in sorted(refs.items())
        ],
    }
    return json.dumps(whole, indent=1) + "\n"


def _id(entry: Entry) -> str:
    kind = entry.purl.removeprefix("pkg:").partition("/")[0]
    return f"SPDXRef-{kind}-{re.sub(r'[^A-Za-z0-9.-]', '-', entry.name)}"


def _package(identifier: str, entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {
        "SPDXID": identifier,
        "name": entry.name,
        "versionInfo": entry.version,
        "supplier": entry.supplier,
        "downloadLocation": NOTHING,
        "filesAnalyzed": False,
        "licenseConcluded": NOTHING,
        "licenseDeclared": entry.license,
        "copyrightText": NOTHING,
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": entry.purl}
        ],
    }
    if entry.comment:
        found["licenseComments"] = entry.comment
    if entry.homepage:
        found["homepage"] = entry.homepage
    if entry.digest:
        found["checksums"] = [{"algorithm": "SHA256", "checksumValue": entry.digest}]
    return found


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def _debian_license(name: str, where: str, refs: dict[str, str]) -> str:
    """An SPDX expression for a short name, which may be several, joined by "and" and "or"."""
    parts = re.split(r"\s+(and|or)\s+|,\s*", name)
    words = []
    for part in filter(None, parts):
        if part in ("and", "or"):
            words.append(part.upper())
            continue
        if words and words[-1] not in ("AND", "OR"):
            words.append("AND")
        known = _DEBIAN.get(part)
        if known is None:
            known = f"LicenseRef-{re.sub(r'[^A-Za-z0-9.-]+', '-', part).strip('-')}"
            refs.setdefault(known, f"{part}: {where}")
        words.append(known)
    expression = " ".join(words)
    return f"({expression})" if len(words) > 1 else expression


def _python_license(fields: Any) -> str:
    if expression := fields["License-Expression"]:
        return str(expression)
    classifiers = (one for one in fields.get_all("Classifier", []) if one.startswith("License ::"))
    for text in (fields["License"], *(one.rpartition(" :: ")[2] for one in classifiers)):
        if text and (known := _PYTHON.get(text.strip())):
            return known
    return NOTHING
