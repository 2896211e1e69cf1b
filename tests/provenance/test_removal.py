# SPDX-License-Identifier: Apache-2.0
"""A document is removed: from the weights, bit for bit, and what else shows it is named."""

import json
import shlex

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import document_ledger
import pretrain
from document_ledger import open_ledger
from provenance.removal import find_entries, first_step
from recipe_config import RecipeError


KEPT = ["--training.keep_every_steps=4"]


@pytest.fixture(scope="module")
def run(tokenized_run, tmp_path_factory):
    run = tokenized_run.copy(tmp_path_factory.mktemp("removal") / "run")
    pretrain.main(run.argv(*KEPT))
    return run


@pytest.fixture(scope="module")
def late(run) -> str:
    """Return a document that is first trained on in one of the steps 9 to 12."""
    ledger = open_ledger(run.output_dir)
    early = {piece["document"] for step in range(1, 9) for piece in ledger.documents_of(step)}
    return min({piece["document"] for step in range(9, 13) for piece in ledger.documents_of(step)} - early)


def ask(capsys, *arguments: str) -> dict:
    document_ledger.main([*map(str, arguments), "--before", "--json"])
    return json.loads(capsys.readouterr().out)


def text_of(run, document: str) -> str:
    paths = (run.output_dir / "documents" / "train").glob("*/*.parquet")
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return next(row["text"] for row in rows if row["id"] == document)


def test_training_again_from_the_last_clean_checkpoint_gives_the_weights_of_a_run_that_never_had_it(
    run, late, tokenized_run, tmp_path, capsys
):
    found = ask(capsys, run.output_dir, "--passage", text_of(run, late)[20:220])
    assert found["documents"] == [late]
    assert 9 <= found["first_step"] <= 12
    clean = [f"{run.output_dir}/checkpoints/step_{step:08d}" for step in (8, 4)]
    assert found["clean_checkpoints"] == clean
    [script, *arguments] = shlex.split(found["command"])[1:]
    assert script == "recipes/run_recipe.py"
    given = [argument for argument in arguments if argument.startswith("--run.resume=") or "skip" in argument]
    assert given == [f"--run.resume={clean[0]}", f'--data.skip.documents=["{late}"]']

    removed, never = run.copy(tmp_path / "removed"), tokenized_run.copy(tmp_path / "never")
    pretrain.main(removed.argv(*KEPT, *given, "--overwrite"))
    pretrain.main(never.argv(*KEPT, given[1]))
    weights = [load_file(one.output_dir / "model" / "model.safetensors") for one in (run, removed, never)]
    assert any(not torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    for name, tensor in weights[2].items():
        assert torch.equal(weights[1][name], tensor), name
    assert first_step(open_ledger(removed.output_dir), [late]) is None


def test_a_document_of_the_first_step_leaves_no_checkpoint_and_the_command_starts_again(run, capsys):
    first = next(open_ledger(run.output_dir).documents_of(1))["document"]
    found = ask(capsys, run.output_dir, "--document", first)
    assert (found["first_step"], found["clean_checkpoints"]) == (1, [])
    assert "--overwrite" in found["command"]
    assert "run.resume" not in found["command"]
    document_ledger.main([str(run.output_dir), "--document", first, "--before"])
    assert "checkpoints that never saw them: none, so training starts again" in capsys.readouterr().out


def test_what_still_shows_a_document_is_named(run, late, tmp_path, capsys):
    folder, text = run.copy(tmp_path / "run").output_dir, text_of(run, late)
    for path in (folder / "documents" / "train").glob("*/*.parquet"):
        table = pq.read_table(path)
        changed = [one.replace("court", "indemnify") if one != text else one for one in table["text"].to_pylist()]
        pq.write_table(table.set_column(table.column_names.index("text"), "text", [changed]), path)
    assert "court" in text
    assert any("court" in entry for entry in find_entries(folder, {late}, [text]))
    sentence = next(line for line in text.splitlines() if len(line.split()) > 8)
    (folder / "eval").mkdir()
    (folder / "eval" / "results.json").write_text(json.dumps({"samples": [{"text": f"So:\n{sentence}\n"}]}))
    (folder / "release").mkdir()
    (folder / "release" / "training.json").write_text(json.dumps({"skips": [{"documents": [late]}]}))
    (folder / "release" / "README.md").write_text("A model of law, with nothing of any document in its own words.")
    rows = folder / "release_dataset" / "train" / "law"
    rows.mkdir(parents=True)
    pq.write_table(pq.read_table(next((folder / "documents" / "train" / "law").glob("*"))), rows / "00000.parquet")
    found = ask(capsys, folder, "--document", late)
    shown = {entry["file"].removeprefix(f"{folder}/"): entry["shows"] for entry in found["mentions"]}
    assert shown["eval/results.json"] == "its words"
    assert shown["release/training.json"] == "its id"
    assert "release/README.md" not in shown
    assert ("release_dataset/train/law/00000.parquet" in shown) == (
        late in pq.read_table(rows / "00000.parquet")["id"].to_pylist()
    )


def test_questions_without_an_answer_are_refused_or_answered_so(run, capsys):
    with pytest.raises(RecipeError, match="--before: ask it with --document or --passage"):
        document_ledger.main([str(run.output_dir), "--step", "3", "--before"])
    with pytest.raises(RecipeError, match="document 0123: not in the training split"):
        document_ledger.main([str(run.output_dir), "--document", "0123", "--before"])
    document_ledger.main([str(run.output_dir), "--passage", "no such words", "--before"])
    assert capsys.readouterr().out == "no training document holds it\n"
