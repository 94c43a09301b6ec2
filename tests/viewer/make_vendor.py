"""``make vendor``: the libraries of the page, from the npm tarballs that ``static/vendor/vendor.json`` names.

A tarball whose sha512 differs from ``vendor.json`` is rejected. The files are written unchanged, and their sha256 is
stored in ``vendor.json``; a test compares it with the files in the repository. For another version, change
``version`` and ``integrity`` (``npm view NAME@VERSION dist.integrity``).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pathlib
import subprocess
import tarfile
import tempfile

VENDOR = pathlib.Path(__file__).parents[2] / "ropd_jax" / "viewer" / "static" / "vendor"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetch(name: str, version: str, integrity: str) -> bytes:
    """The npm tarball of a package.

    Raises:
        SystemExit: its content is not the one that was pinned.
    """
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=directory, check=True)
        [path] = pathlib.Path(directory).glob("*.tgz")
        content = path.read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != integrity:
        raise SystemExit(f"{name}@{version} has {found}; expected {integrity} as vendor.json has it")
    return content


def main() -> None:
    packages = json.loads((VENDOR / "vendor.json").read_text(encoding="utf-8"))
    for package in packages:
        tarball = fetch(package["name"], package["version"], package["integrity"])
        with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
            for name, file in package["files"].items():
                member = archive.extractfile(f"package/{file['from']}")
                assert member is not None
                content = member.read()
                (VENDOR / name).write_bytes(content)
                file["sha256"] = sha256(content)
    (VENDOR / "vendor.json").write_text(json.dumps(packages, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
