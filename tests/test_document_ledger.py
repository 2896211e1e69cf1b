# SPDX-License-Identifier: Apache-2.0
"""The ledger answers from either side, and its answers are what training really read."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

import document_ledger
import pretrain
from document_ledger import Ledger
from recipe_config import RecipeError
from token_mixture import permute, unpermute


@pytest.fixture(scope="module")
def run(tokenized_run, tmp_path_factory):
    run = tokenized_run.copy(tmp_path_factory.mktemp("ledger") / "run")
    pretrain.main(run.argv("--training.max_tokens=76_800"))  # 300 steps: each source more than once round
    return run


def test_the_documents_of_a_step_are_the_text_it_was_trained_on(run):
    ledger = Ledger(run.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir / "tokenizer")
    rows = [
        row for part in ("law", "web") for row in pq.read_table(run.output_dir / "documents/train" / part).to_pylist()
    ]
    texts = {row["id"]: row["text"] for row in rows}
    for step in (1, 7, 300):
        read = []
        for sequence in range(ledger.sequences_per_step):
            labels = ledger.mixture.sequence((step - 1) * ledger.sequences_per_step + sequence)[1:]
            read += labels.tolist()
        said = []
        for piece in ledger.documents_of(step):
            tokens = [*tokenizer(texts[piece["document"]]).input_ids, 0]
            said += tokens[piece["first_token"] : piece["end_token"]]
        assert said == read


def test_the_steps_of_a_document_are_those_that_name_it(run):
    ledger = Ledger(run.output_dir)
    by_step = {}
    for step in range(1, ledger.max_steps + 1):
        for piece in ledger.documents_of(step):
            by_step.setdefault(piece.pop("document"), []).append({"step": step, **piece})
    names = sorted(by_step)
    for document in [names[0], names[-1], names[len(names) // 2]]:
        found = list(ledger.steps_of(document))
        assert sorted(map(str, found)) == sorted(map(str, by_step[document]))
        assert len({visit["step"] for visit in found}) > 3


def test_a_document_that_is_held_out_or_unknown_was_never_trained_on(run):
    ledger = Ledger(run.output_dir)
    held_out = pq.read_table(run.output_dir / "documents" / "test" / "law")["id"][0].as_py()
    for document in (held_out, "0" * 32):
        with pytest.raises(RecipeError, match=f"document {document}: not in the training split"):
            list(ledger.steps_of(document))


def test_the_command_answers_both_questions(run, capsys):
    document_ledger.main([str(run.output_dir), "--step", "3", "--json"])
    pieces = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert pieces
    document_ledger.main([str(run.output_dir), "--document", pieces[0]["document"], "--json"])
    visits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(visit["step"] == 3 for visit in visits)
    document_ledger.main([str(run.output_dir), "--step", "3"])
    assert pieces[0]["document"] in capsys.readouterr().out
    with pytest.raises(RecipeError, match="--step 301: the run has steps 1 to 300"):
        document_ledger.main([str(run.output_dir), "--step", "301"])


def test_a_run_that_has_not_started_has_no_ledger(tokenized_run):
    with pytest.raises(RecipeError, match="no checkpoint yet"):
        Ledger(tokenized_run.output_dir)


@pytest.mark.parametrize("size", [1, 2, 5, 63, 1000])
def test_a_permutation_can_be_undone(size):
    key = (3, 1, 4)
    assert [unpermute(permute(index, size, key), size, key) for index in range(size)] == list(np.arange(size))
