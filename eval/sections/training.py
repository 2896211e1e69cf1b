# SPDX-License-Identifier: Apache-2.0
"""What was trained, and at what cost: training.json."""

from run_files import RunFiles, Shown


def show(run: RunFiles) -> Shown | None:
    training = run.json("training.json")
    return training and Shown("What was trained, and at what cost", {"training": training})
