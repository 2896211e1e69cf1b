# SPDX-License-Identifier: Apache-2.0
"""The plan and its scaling-law charts: plan.json, plan/size.png and plan/tokens.png, figures/scaling_law.png."""

import base64

from run_files import RunFiles, Shown


# Drawn by the planner and by the scaling-law experiment, and shown as they are.
CHARTS = {
    "plan/size.png": "Model size that each scaling law gives for a budget",
    "plan/tokens.png": "Tokens that each scaling law gives for a budget",
    "figures/scaling_law.png": "Loss over compute, fitted on runs of this repository",
}


def show(run: RunFiles) -> Shown | None:
    plan = run.json("plan.json")
    charts = {path: text for path, text in CHARTS.items() if run.has(path)}
    if plan is None and not charts:
        return None
    images = [{"path": path, "text": text, "uri": png_uri(run, path)} for path, text in charts.items()]
    return Shown("The plan", {"plan": plan, "images": images, "training": run.json("training.json")})


def png_uri(run: RunFiles, path: str) -> str:
    return "data:image/png;base64," + base64.b64encode((run.folder / path).read_bytes()).decode()
