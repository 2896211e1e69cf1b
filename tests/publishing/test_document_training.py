# SPDX-License-Identifier: Apache-2.0
"""The European forms are filled from the run's records; what records cannot say is left to a person, and listed."""

import json
import shutil

import pytest

import document_training
from recipe_config import RecipeError


# The numbers of the two templates; a letter where one number asks for several things.
TEMPLATE_NUMBERS = {
    "training_summary": "1.1 1.2 1.3 2.1 2.2.1 2.2.2 2.3 2.4 2.5 2.6 3.1 3.2 3.3",
    "model_documentation": "1.1 1.2 1.3 1.4 1.5 1.6 2.1 2.2 2.3 2.4 2.5 3.1 3.2 4.1 4.2 4.3 4.4 4.5 4.6 5.1 5.2 "
    "6.1 6.2 6.3 6.4 6.5 6.6 6.7 6.8 7.1 7.2 7.3 8.1 8.2",
}


@pytest.fixture
def run(evaluated_run, tmp_path):
    return evaluated_run.copy(tmp_path / "run").output_dir


def read_forms(run):
    return {name: json.loads((run / "documentation" / f"{name}.json").read_text()) for name in TEMPLATE_NUMBERS}


def fields_of(form):
    return [field for fields in form["form"].values() for field in fields]


def test_each_field_of_the_templates_is_there_and_each_answer_names_a_file_of_the_run(run):
    document_training.main([str(run)])
    for name, form in read_forms(run).items():
        numbers = {field["number"].rstrip("abcdef") for field in fields_of(form)}
        assert set(TEMPLATE_NUMBERS[name].split()) <= numbers
        for field in fields_of(form):
            if field["answer"] is None:
                assert field["number"] in form["open"]
                assert field["source"] is None
            else:
                for source in field["source"].split(", "):
                    assert source == "release/README.md" or (run / source).exists()


def test_the_answers_are_those_of_the_records(run):
    document_training.main([str(run)])
    summary, documentation = read_forms(run).values()
    training = json.loads((run / "training.json").read_text())
    manifest = json.loads((run / "tokens" / "manifest.json").read_text())
    answers = {field["number"]: field["answer"] for field in fields_of(summary)}
    tokens = sum(source["train"]["tokens"] for source in manifest["sources"].values())
    assert answers["1.3b"] == f"less than 1 billion tokens ({tokens:,} different ones)"
    assert answers["1.2b"] == "none: trained from scratch"
    answers = {field["number"]: field["answer"] for field in fields_of(documentation)}
    assert answers["2.5"] == f"{training['parameters']['total']:,}"
    assert answers["7.2"] == f"{training['flops']:.3g} floating-point operations"
    assert "is below 1e+23" in summary["duty"]
    assert "no legal advice" in summary["duty"]


def test_sources_that_are_not_public_are_left_to_a_person_without_their_folders(run):
    document_training.main([str(run)])
    summary = read_forms(run)["training_summary"]
    assert "2.6" in summary["open"]
    sources = next(field["answer"] for field in fields_of(summary) if field["question"] == "Local sources")
    assert "law: local file or folder law.jsonl" in sources
    text = (run / "documentation" / "training_summary.md").read_text()
    assert str(run.parent) not in text
    assert "texts/law.jsonl" not in text


def test_a_person_answers_what_is_open_and_then_nothing_is(run, tmp_path, capsys):
    document_training.main([str(run)])
    forms = read_forms(run)
    answers = {name: {number: f"answer to {number}" for number in form["open"]} for name, form in forms.items()}
    (tmp_path / "answers.yaml").write_text(json.dumps(answers))
    capsys.readouterr()
    document_training.main([str(run), "--answers", str(tmp_path / "answers.yaml")])
    assert capsys.readouterr().out.count(": complete") == 2
    for name, form in read_forms(run).items():
        assert form["open"] == []
        text = (run / "documentation" / f"{name}.md").read_text()
        assert "to be written by a person" not in text
        assert f"answer to {forms[name]['open'][0]}" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("training_summary: {'9.9': text}", r"answers: 9.9: the form has no such field"),
        ("training_summary: {'1.1a': ''}", r"answers: 1.1a: write a text"),
        ("summary: {}", r"give a mapping of training_summary and model_documentation"),
    ],
)
def test_answers_that_fit_no_field_are_refused(run, tmp_path, content, message):
    (tmp_path / "answers.yaml").write_text(content)
    with pytest.raises(RecipeError, match=message):
        document_training.main([str(run), "--answers", str(tmp_path / "answers.yaml")])


def test_an_unfinished_run_is_refused_with_what_is_missing(run):
    shutil.rmtree(run / "model")
    (run / "training.json").unlink()
    with pytest.raises(RecipeError, match=r"training.json, model/config.json missing; finish recipes/run_recipe.py"):
        document_training.main([str(run)])
