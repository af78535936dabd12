"""Writes a software bill of materials in CycloneDX's JSON: what an installed product runs on, as it is locked.

The specification: https://cyclonedx.org/docs/1.6/json/. With SOURCE_DATE_EPOCH set, the same lock gives the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from locked import PRODUCT, Dependency, direct_dependencies, runtime_dependencies


def bill_of_materials(dependencies: Sequence[Dependency], made_at: datetime) -> dict[str, Any]:
    """Return the document."""
    version = importlib.metadata.version(PRODUCT)
    product = {
        "type": "application",
        "bom-ref": _purl(PRODUCT, version),
        "name": PRODUCT,
        "version": version,
        "purl": _purl(PRODUCT, version),
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    components = [_component(one) for one in dependencies]
    refs = {one.name: _purl(one.name, one.version) for one in dependencies}
    graph = [
        {
            "ref": _purl(PRODUCT, version),
            "dependsOn": sorted(refs[name] for name in direct_dependencies() if name in refs),
        },
        *(
            {
                "ref": refs[one.name],
                "dependsOn": sorted(refs[need] for need in one.needs if need in refs),
            }
            for one in dependencies
        ),
    ]
    content = json.dumps([product, components, graph], sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {"timestamp": made_at.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": product},
        "components": components,
        "dependencies": graph,
    }


def _component(dependency: Dependency) -> dict[str, Any]:
    purl = _purl(dependency.name, dependency.version)
    license_ = (
        {"expression": dependency.license}
        if dependency.is_spdx
        else {"license": {"name": dependency.license}}
    )
    return {
        "type": "library",
        "bom-ref": purl,
        "name": dependency.name,
        "version": dependency.version,
        "purl": purl,
        "scope": "required" if dependency.extra is None else "optional",
        "licenses": [license_],
    }


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="where to write it; standard output by default")
    file: Path | None = parser.parse_args().file
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    made_at = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    text = json.dumps(bill_of_materials(runtime_dependencies(), made_at), indent=2) + "\n"
    if file is None:
        sys.stdout.write(text)
    else:
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
