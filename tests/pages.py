# SPDX-License-Identifier: Apache-2.0
"""The pages of the repository, and the commands that they print."""

import re
from pathlib import Path

from tiny_run import RECIPES, ROOT


PAGES = sorted([ROOT / "README.md", RECIPES / "CONTRIBUTING.md", *RECIPES.rglob("README.md")])
for folder in ("accelerate_configs", "eval", "tests"):
    PAGES += sorted((ROOT / folder).rglob("README.md"))


def command_lines(page: Path) -> list[str]:
    """Return the lines of a page's shell blocks, continued lines joined, with the comments at their ends."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]
