# SPDX-License-Identifier: Apache-2.0
"""The plan and its scaling-law charts: plan.json, plan/size.png and plan/tokens.png, figures/scaling_law.png."""

import base64

from run_files import RunFiles, Section


# Drawn by the planner and by the scaling-law experiment.
CHARTS = {
    "plan/size.png": "Model size that each scaling law advises for a budget (lines), published models and this run",
    "plan/tokens.png": "The number of training tokens that each law advises, in the same chart",
    "figures/scaling_law.png": "Optimal size and tokens over compute, fitted on runs of this repository",
}


def build(run: RunFiles) -> Section | None:
    plan = run.json("plan.json")
    charts = {path: text for path, text in CHARTS.items() if run.has(path)}
    if plan is None and not charts:
        return None
    images = [{"path": path, "text": text, "uri": png_uri(run, path)} for path, text in charts.items()]
    return Section("The plan", {"plan": plan, "images": images, "training": run.json("training.json")})


def png_uri(run: RunFiles, path: str) -> str:
    return "data:image/png;base64," + base64.b64encode(run.content(path)).decode()
