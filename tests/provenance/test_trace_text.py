# SPDX-License-Identifier: Apache-2.0
"""Passages of training documents are traced to them and to the steps that saw them; other text is not."""

import json
import os
import random
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from tiny_run import ROOT
from tokenizers import Tokenizer

import audit_leaks
import report
import trace_text
from document_ledger import open_ledger
from recipe_config import RecipeError
from recovery.run_lock import RunLockedError, run_lock


@pytest.fixture(scope="module")
def run(evaluated_run, tmp_path_factory):
    return evaluated_run.copy(tmp_path_factory.mktemp("trace") / "run").output_dir


@pytest.fixture(scope="module")
def documents(run):
    paths = sorted((run / "documents" / "train").glob("*/*.parquet"))
    return [row | {"source": path.parent.name} for path in paths for row in pq.read_table(path).to_pylist()]


def test_a_hundred_planted_passages_of_20_tokens_are_traced_to_their_documents(run, documents):
    tracer, choose = trace_text.open_tracer(run, least_tokens=8), random.Random(3)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    for _ in range(100):
        document = choose.choice(documents)
        offsets = tokenizer.encode(document["text"], add_special_tokens=False).offsets
        first = choose.randrange(len(offsets) - 20)
        begin, end = offsets[first][0], offsets[first + 19][1]
        passage = document["text"][begin:end]
        text = f"\u00fc{passage}\uac00"  # neither character is in the training text
        longest = tracer.trace(text)["spans"][0]
        assert text[longest["begin"] : longest["end"]] == passage
        assert longest["count"] >= 1
        if longest["count"] <= len(longest["documents"]):
            position = len(document["text"][:begin].encode())
            assert (document["id"], position) in [(d["document"], d["first_byte"]) for d in longest["documents"]]


def test_the_steps_of_a_span_are_those_whose_targets_hold_it(run, documents):
    tracer, ledger, choose = trace_text.open_tracer(run, least_tokens=4), open_ledger(run), random.Random(4)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    pieces = {}
    for step in range(1, ledger.max_steps + 1):
        for piece in ledger.documents_of(step):
            pieces.setdefault(piece["document"], []).append((step, piece["first_token"], piece["end_token"]))
    for document in choose.sample(documents, 10):
        encoding = tokenizer.encode(document["text"], add_special_tokens=False)
        first = choose.randrange(len(encoding.ids) - 20)
        begin, end = (
            len(document["text"][:place].encode())
            for place in (encoding.offsets[first][0], encoding.offsets[first + 19][1])
        )
        expected = {step for step, a, b in pieces.get(document["id"], []) if a < first + 20 and first < b}
        assert tracer.steps_of(document["id"], len(document["text"].encode()), begin, end) == sorted(expected)


def test_text_of_nobody_has_no_span_and_held_out_text_gives_the_baseline(run):
    tracer = trace_text.open_tracer(run, least_tokens=8)
    found = tracer.trace("\u00e9\u00e8\u00ea" * 30)
    assert found["spans"] == []
    assert found["covered_fraction"] == 0
    baseline = tracer.measure_baseline(40)
    assert baseline["passages"] > 0
    assert 0 <= baseline["median_tokens"] <= baseline["p95_tokens"] <= baseline["most_tokens"] <= 40


def test_the_page_and_the_json_show_the_documents_and_escape_text(run, documents, capsys):
    passage = documents[0]["text"][10:150]
    trace_text.main([str(run), "--text", f"<script>alert(1)</script> {passage}"])
    page = (run / "trace" / "text.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert documents[0]["id"] in page
    found = json.loads((run / "trace" / "text.json").read_text())
    span = found["texts"][0]["spans"][0]
    assert passage in found["texts"][0]["text"][span["begin"] : span["end"]]
    assert span["beyond_baseline"] == (span["tokens"] > found["baseline"]["p95_tokens"])
    assert documents[0]["source"] in capsys.readouterr().out


def test_a_text_is_traced_in_whatever_form_it_is_given(run, documents, tmp_path):
    passage = documents[0]["text"][10:150]
    given = "\ufeff" + passage.replace("\n", "\r\n").replace(" ", "\u00a0").replace("e", "e\u00ad")
    (tmp_path / "letter.txt").write_text(given, newline="")
    trace_text.main([str(run), "--text", str(tmp_path / "letter.txt")])
    (traced,) = json.loads((run / "trace" / "text.json").read_text())["texts"]
    assert traced["text"] == passage.strip() and traced["covered_fraction"] > 0.9
    with pytest.raises(RecipeError, match="--text: nothing but invisible characters"):
        trace_text.main([str(run), "--text", "\u00ad"])


def test_what_the_model_writes_after_a_prompt_is_traced(run):
    command = [sys.executable, str(ROOT / "recipes" / "trace_text.py"), str(run), "--prompt", "The court"]
    finished = subprocess.run([*command, "--min_tokens", "3"], capture_output=True, text=True, check=True)
    assert "[The court]" in finished.stdout
    assert (run / "trace" / "prompt.html").exists()


def test_the_report_underlines_what_the_samples_repeat(run):
    trace_text.main([str(run), "--samples", "--min_tokens", "3"])
    traced = json.loads((run / "trace" / "samples.json").read_text())["texts"]
    report.main([str(run)])
    page = (run / "report.html").read_text()
    assert page.count("<u>") == sum(span is not None for entry in traced for _, span in entry["pieces"]) > 0


def test_one_command_at_a_time_writes_a_runs_traces_and_one_its_audit(run):
    for folder, refused in ((run, [audit_leaks]), (run / "trace", [audit_leaks, trace_text])):
        with run_lock(folder, "test"):
            for command in refused:
                options = ["--text", "The court"] if command is trace_text else []
                with pytest.raises(RunLockedError, match=rf"{folder} is in use by process {os.getpid()} .*\(test, "):
                    command.main([str(run), *options])
    with run_lock(run, "pretrain"):  # text can be traced while its model trains on
        trace_text.main([str(run), "--text", "The court"])
    assert not [path for path in (run / "trace").iterdir() if path.name.startswith(".")]


def test_what_is_missing_or_unreadable_is_named(run, tokenized_run, tmp_path):
    with pytest.raises(RecipeError, match=r"recipe.yaml is missing; run recipes/pretrain.py"):
        trace_text.main([str(tmp_path), "--text", "The court"])
    with pytest.raises(RecipeError, match="no samples; run eval/run_eval.py"):
        trace_text.main([str(tokenized_run.output_dir), "--samples"])
    with pytest.raises(RecipeError, match="--text: 0 bytes"):
        trace_text.main([str(run), "--text", ""])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(RecipeError, match="not UTF-8"):
        trace_text.main([str(run), "--text", str(tmp_path / "latin.txt")])
