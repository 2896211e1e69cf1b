# SPDX-License-Identifier: Apache-2.0
"""Fill the European forms about a model's training from the records of its run.

In:   a finished run folder; with --answers, a YAML file of what only a person can write: {field number: text} below
      training_summary and model_documentation.
Out:  <run>/documentation/: training_summary.md and .json, the public summary of training content; and
      model_documentation.md and .json. Each field says which file it is from; open ones are marked and listed.

    python recipes/document_training.py runs/legal-342m
    python recipes/document_training.py runs/legal-342m --answers answers.yaml
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from atomic_files import replace_text, write_json
from card_text import render_card
from publishing import training_forms
from publishing.training_forms import FORMS, Records, describe_duty, with_answers
from recipe_config import RecipeError
from recipe_loading import load_recipe, read_yaml_file, run_command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    parser.add_argument("--answers", type=Path, help="YAML file of the answers that a person gives")
    options = parser.parse_args(argv)
    run = options.run_folder
    if not (run / "recipe.yaml").exists():
        raise RecipeError(f"{run / 'recipe.yaml'} is missing; give the run.output_dir of a finished run")
    answers = read_yaml_file(options.answers)[0] if options.answers else {}
    if not isinstance(answers, dict) or not answers.keys() <= FORMS.keys():
        raise RecipeError(f"--answers {options.answers}: give a mapping of {' and '.join(FORMS)}")
    records = Records(load_recipe([run / "recipe.yaml"], [f"--run.output_dir={run}"]))
    for name, title in FORMS.items():
        form = with_answers(getattr(training_forms, f"fill_{name}")(records), answers.get(name) or {})
        open_fields = [field.number for fields in form.values() for field in fields if field.answer is None]
        folder = run / "documentation"
        folder.mkdir(exist_ok=True)
        described = {section: [asdict(field) for field in fields] for section, fields in form.items()}
        write_json(folder / f"{name}.json", {"duty": describe_duty(records), "open": open_fields, "form": described})
        card = render_card(
            Path(training_forms.__file__).with_name("training_form.md"),
            None,
            title=title,
            model=records.name,
            duty=describe_duty(records),
            open=open_fields,
            form=form,
        )
        replace_text(folder / f"{name}.md", card)
        state = f"{len(open_fields)} fields for a person: {', '.join(open_fields)}" if open_fields else "complete"
        print(f"{folder / f'{name}.md'}: {state}")


if __name__ == "__main__":
    run_command(main)
