# SPDX-License-Identifier: Apache-2.0
"""The plan and its scaling-law charts: plan.json, figures/plan_size.png and plan_tokens.png, scaling_law.png."""

import base64

from run_files import RunFiles, Shown


# Drawn by the planner and by the scaling-law experiment, and shown as they are.
CHARTS = {
    "plan_size": "Model size that each scaling law gives for a budget",
    "plan_tokens": "Tokens that each scaling law gives for a budget",
    "scaling_law": "Loss over compute, fitted on runs of this repository",
}


def show(run: RunFiles) -> Shown | None:
    plan = run.json("plan.json")
    charts = {name: text for name, text in CHARTS.items() if run.has(f"figures/{name}.png")}
    if plan is None and not charts:
        return None
    images = [
        {"path": f"figures/{name}.png", "text": text, "uri": png_uri(run, f"figures/{name}.png")}
        for name, text in charts.items()
    ]
    return Shown("The plan", {"plan": plan, "images": images, "training": run.json("training.json")})


def png_uri(run: RunFiles, path: str) -> str:
    return "data:image/png;base64," + base64.b64encode((run.folder / path).read_bytes()).decode()
