"""The libraries of the page are the pinned ones, byte for byte."""

from __future__ import annotations

import json

from tests.viewer.make_vendor import VENDOR, sha256


def test_the_vendored_files_are_the_pinned_ones():
    packages = json.loads((VENDOR / "vendor.json").read_text(encoding="utf-8"))
    known = {name: file["sha256"] for package in packages for name, file in package["files"].items()}
    assert {p.name: sha256(p.read_bytes()) for p in VENDOR.iterdir() if p.name != "vendor.json"} == known
    for package in packages:
        assert package["integrity"].startswith("sha512-") and package["licence"] in ("MIT", "BSD-3-Clause")
        assert any("LICENSE" in name for name in package["files"])
