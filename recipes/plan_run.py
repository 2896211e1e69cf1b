# SPDX-License-Identifier: Apache-2.0
"""Stage 0: which model, on how many tokens, at what cost; and whether to pretrain at all.

In:   `plan` of the recipe (one budget, the available text); documents/stats.json and tokenizer/report.json where they
      exist.
Out:  <run.output_dir>/plan.json, and in plan/ planned.yaml (an overlay with the planned model and training), size.png
      and tokens.png. It is advice: no other stage reads it.

    python recipes/plan_run.py --config recipes/legal/base.yaml --plan.device_hours=2000 --plan.domain_bytes=20e9 \\
        --plan.general_bytes=19e9
    python recipes/run_recipe.py --config recipes/legal/base.yaml runs/legal-342m/plan/planned.yaml

plan.json: budget, laws (each law's optimum for the budget), text, model, vocab_size, parameters, tokens, flops,
training, memory, cost, loss, verdict, assumptions and warnings; a unit is in the key, or "meaning" says it.
"""

from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from atomic_files import write_json
from planning.available_text import NotEnoughText, read_json
from planning.charts import draw_plan
from planning.devices import find_device
from planning.plan import make_plan
from planning.plan_table import describe
from planning.planned_recipe import planned_values
from recipe_loading import parse_command_line, run_command
from recorded_files import recording
from recovery.run_lock import run_lock
from run_folder import is_finished, new_output
from stages import output_folder


def write_overlay(plan: dict, path: Path) -> None:
    """Write what the next stages run: the planned model, vocabulary and training as a recipe overlay."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(planned_values(plan), stream)
    first = "# Written by plan_run.py; give it after the recipe: --config recipe.yaml planned.yaml\n"
    path.write_text(first + stream.getvalue(), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    if is_finished(recipe, "plan", options.overwrite) and not options.overwrite:
        print(f"plan_run: nothing to do, {output_folder(recipe, 'plan')} is up to date")
        return
    try:
        plan = make_plan(recipe, find_device(recipe.plan.device))
    except NotEnoughText as answer:
        print(answer)
        return
    print(describe(plan))
    if options.dry_run:
        return
    run = Path(recipe.run.output_dir)
    with run_lock(run, "plan"), new_output(recipe, "plan") as folder:
        draw_plan(plan, read_json(run / "training.json"), folder)
        write_overlay(plan, folder / "planned.yaml")
        with recording(run, "plan.json"):
            write_json(run / "plan.json", plan)
    print(f"\nplan_run: {run / 'plan.json'}, charts and planned.yaml in {output_folder(recipe, 'plan')}")


if __name__ == "__main__":
    run_command(main)
