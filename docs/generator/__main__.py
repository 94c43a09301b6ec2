"""``python -m docs.generator``: writes the pages of the site to build/docs."""

from __future__ import annotations

import sys

from docs.generator.tree import OUT, write

sys.stdout.write(f"{write()} pages in {OUT}\n")
