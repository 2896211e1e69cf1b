# SPDX-License-Identifier: Apache-2.0
"""What was checked before training: preflight.json, as `pretrain.py --dry_run` writes it."""

from run_files import RunFiles, Shown


def show(run: RunFiles) -> Shown | None:
    preflight = run.json("preflight.json")
    return preflight and Shown("What was checked before training", {"checks": preflight["checks"]})
