# SPDX-License-Identifier: Apache-2.0
"""Checks before training: preflight.json, written by `pretrain.py --dry_run`."""

from run_files import RunFiles, Section


def build(run: RunFiles) -> Section | None:
    preflight = run.json("preflight.json")
    return preflight and Section("Checks before training", {"checks": preflight["checks"]})
