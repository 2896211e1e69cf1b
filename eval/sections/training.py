# SPDX-License-Identifier: Apache-2.0
"""Size, length and cost of the training: training.json."""

from run_files import RunFiles, Section


def build(run: RunFiles) -> Section | None:
    training = run.json("training.json")
    return training and Section("Model and cost", {"training": training})
