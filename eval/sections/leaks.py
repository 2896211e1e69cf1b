# SPDX-License-Identifier: Apache-2.0
"""What the model gives away of its training text: audit.json, of recipes/audit_leaks.py."""

from run_files import RunFiles, Section


def build(run: RunFiles) -> Section | None:
    audit = run.json("audit.json")
    if audit is None:
        return None
    model = run.json("model/stage.json")
    is_current = model is None or model["sha256"] == audit["made_from"]["model"]
    return Section("What the model gives away", {"audit": audit, "is_current": is_current})
