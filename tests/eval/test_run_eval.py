# SPDX-License-Identifier: Apache-2.0
"""A whole evaluation of a tiny model: results.json, refusals, and lm-eval's own tasks scored on known models."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lm_eval.api.instance import Instance
from mini_hub import hub_environment, start_hub
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

import held_out_scores
import intervals
import report
import run_eval
from benchmark_tasks import TASKS_DIR, build_requests, read_benchmarks
from bits_per_byte import load_model, score_documents
from generated_samples import generate_sample
from intervals import measured
from item_scores import gold_bits
from limits import NotScored, run_script
from request_scoring import RequestScorer
from results_folder import locked_output
from run_eval import load_tasks, main, parse_arguments, run_task
from run_files import RunFiles
from sections import overview
from shared_work import SharedWork
from training_overlap import overlap_groups, read_decontamination


TASKS = ["legal_sense", "general_agreement", "dosing_shorthand"]


def run_tasks(model, tokenizer, names, *, context_length, batch_size, argv=()):
    """Score tasks in memory: {task: its entry in results.json}."""
    arguments = parse_arguments([*argv, "--tasks", ",".join(names)])
    scorer = RequestScorer(model, tokenizer, context_length=context_length, batch_size=batch_size, work=SharedWork())
    tasks, decontamination = load_tasks(arguments), read_decontamination(arguments.decontamination)
    return {name: run_task(scorer, *tasks[name][:3], arguments, decontamination)[0] for name in names}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder that --export_requests writes, from a working directory that is not the repository's."""
    folder = tmp_path_factory.mktemp("requests")
    before = os.getcwd()
    os.chdir(folder)
    try:
        main(["--export_requests", str(folder / "benchmarks")])
    finally:
        os.chdir(before)
    return folder / "benchmarks"


@pytest.fixture(scope="module")
def requests(exported):
    """Every task's items as --export_requests writes them."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(exported.iterdir())
    }


def decontamination_of(exported, task, *, kept=(), removed=(), too_short=()):
    """Return a decontamination.json of one task: documents with these items were kept, or all removed."""
    left = [{"id": item, "fraction": 0.9, "fraction_after_removal": 0.3} for item in kept]
    gone = [{"id": item, "fraction": 1.0, "fraction_after_removal": 0.0} for item in removed]
    found = {"overlaps": [*left, *gone], "not_checkable": {"too_short": list(too_short), "template": []}}
    digest = hashlib.sha256((exported / f"{task}.jsonl").read_bytes()).hexdigest()
    return {"settings": {"sha256": {task: digest}}, "tasks": {task: found}}


@pytest.fixture(scope="module")
def decontamination(exported, requests, tmp_path_factory):
    """A decontamination.json: 30 items still overlap, 10 did before removal, 5 cannot be checked."""
    ids = [item["id"] for item in requests["general_agreement"]]
    path = tmp_path_factory.mktemp("checked") / "decontamination.json"
    chosen = {"kept": ids[:30], "removed": ids[30:40], "too_short": ids[40:45]}
    path.write_text(json.dumps(decontamination_of(exported, "general_agreement", **chosen)))
    return path


@pytest.fixture(scope="module")
def evaluated(model_folder, documents, decontamination, tmp_path_factory):
    """Run a full evaluation twice, the second time over the first; return the bytes of both results."""
    output = tmp_path_factory.mktemp("evaluated") / "eval"
    command = ["--model", str(model_folder), "--documents", str(documents), "--output", str(output), "--xz"]
    command += ["--tasks", "general_agreement", "--prompts", "The parties", "The keys", "--context_length", "64"]
    command += ["--decontamination", str(decontamination)]
    texts = []
    for _ in range(2):
        main(command)
        assert [path.name for path in output.parent.iterdir()] == ["eval"]
        texts.append((output / "results.json").read_bytes())
    return texts


def test_two_runs_write_the_same_bytes(evaluated):
    assert evaluated[0] == evaluated[1]


def test_results_say_what_was_scored_and_how(evaluated, documents):
    results = json.loads(evaluated[0])
    assert results["format"] == 2 and len(results["model_sha256"]) == 64
    assert results["settings"]["stride"] == 32 and results["settings"]["split"] == "test"
    sources = results["bits_per_byte"]["sources"]
    assert {name: entry["domain"] for name, entry in sources.items()} == {
        "contracts": "legal",
        "statutes": "legal",
        "stories": "stories",
    }
    for entry in sources.values():
        low, high = entry["confidence_interval"]
        assert low < entry["bits_per_byte"] < high
        assert entry["bits_per_byte"] == pytest.approx(entry["nats"] / np.log(2) / entry["bytes"])
        assert entry["xz_primed"] < entry["xz_stream"] < entry["xz_documents"]
        assert entry["documents"] == 9 and entry["documents_not_restored"] == 0
    legal = results["bits_per_byte"]["domains"]["legal"]
    for key in ("documents", "bytes", "tokens"):
        assert legal[key] == sources["contracts"][key] + sources["statutes"][key]
    assert legal["nats"] == pytest.approx(sources["contracts"]["nats"] + sources["statutes"]["nats"])
    assert [sample["prompt"] for sample in results["samples"]] == ["The parties", "The keys"]
    assert all(sample["text"] for sample in results["samples"])


def test_long_documents_are_scored_with_less_and_more_than_the_models_context(model, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "documents" / "test" / "contracts"
    folder.mkdir(parents=True)
    short, long = "It is long ago.", " ".join(f"On day {day} the parties met for no good." for day in range(30))
    rows = [{"id": f"{number:032x}", "text": text, "date": None} for number, text in enumerate((short, long, long))]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    arguments = parse_arguments(["--documents", str(tmp_path / "documents"), "--context_length", "64"])
    scored = held_out_scores.score_context_lengths(model, tokenizer, arguments, ["contracts"], SharedWork())
    assert list(scored) == ["64", "128", "256", "512"]
    for length, entry in scored.items():
        assert (entry["documents"], entry["bytes"]) == (2, 2 * len(long.encode()))
        whole = score_documents(model, tokenizer, [long], context_length=int(length))[0]
        assert entry["nats"] == pytest.approx(2 * whole.nats)
    monkeypatch.setattr(held_out_scores, "LONG_CONTEXTS", 1)
    first = held_out_scores.score_context_lengths(model, tokenizer, arguments, ["contracts"], SharedWork())
    assert {entry["documents"] for entry in first.values()} == {1}, "enough text after one"
    monkeypatch.setattr(model.config, "rope_parameters", None)
    assert held_out_scores.score_context_lengths(model, tokenizer, arguments, ["contracts"], SharedWork()) == {}


def test_clean_and_overlapping_items_are_scored_separately_and_few_are_only_counted(evaluated, decontamination):
    results = json.loads(evaluated[0])
    assert results["settings"]["decontamination_sha256"] == hashlib.sha256(decontamination.read_bytes()).hexdigest()
    task = results["tasks"]["general_agreement"]
    groups = task["by_overlap"]
    assert {group: entry["num_items"] for group, entry in groups.items()} == {
        "clean": 118 - 35,
        "overlapping": 30,
        "not_checkable": 5,
    }
    assert list(groups) == ["clean", "overlapping", "not_checkable"]
    assert groups["not_checkable"] == {"num_items": 5, "chance": 0.5, "metrics": None, "gold_bits_per_byte": None}
    right = {g: e["num_items"] * e["metrics"]["acc"]["value"] for g, e in groups.items() if e["metrics"]}
    assert all(number == pytest.approx(round(number)) for number in right.values())
    rest = task["num_items"] * task["metrics"]["acc"]["value"] - sum(right.values())
    assert 0 <= round(rest) <= 5
    for group in ("clean", "overlapping"):
        assert 0 < groups[group]["metrics"]["acc"]["stderr"] < 0.1
        assert groups[group]["gold_bits_per_byte"]["value"] > 1


def test_items_that_are_not_those_that_were_checked_are_unchecked(exported, requests):
    items = requests["legal_sense"]
    ids = [item["id"] for item in items]
    checked = decontamination_of(exported, "legal_sense", kept=ids[:1], removed=ids[1:2], too_short=ids[2:3])
    assert overlap_groups("legal_sense", items, checked)[:4] == ["overlapping", "clean", "not_checkable", "clean"]
    assert set(overlap_groups("general_agreement", requests["general_agreement"], checked)) == {"unchecked"}
    reworded = [items[0] | {"context": items[0]["context"] + "."}, *items[1:]]
    assert set(overlap_groups("legal_sense", reworded, checked)) == {"unchecked"}
    assert set(overlap_groups("legal_sense", items[1:], checked)) == {"unchecked"}


def test_without_a_check_of_the_text_overlap_is_not_reported(model, tokenizer):
    result = run_tasks(model, tokenizer, ["general_agreement"], context_length=64, batch_size=8)
    assert result["general_agreement"]["by_overlap"] is None


@pytest.mark.parametrize("content", [None, "{", "[]", '{"settings": {}, "tasks": {}}'])
def test_a_file_that_is_no_decontamination_is_refused(model_folder, tmp_path, content):
    path = tmp_path / "decontamination.json"
    if content is not None:
        path.write_text(content)
    command = ["--model", str(model_folder), "--output", str(tmp_path / "eval"), "--tasks", "general_agreement"]
    with pytest.raises(SystemExit, match="--decontamination: .* is not a decontamination.json as prepare writes it"):
        main([*command, "--decontamination", str(path)])


def test_report_reads_what_an_evaluation_writes(evaluated, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/results.json").write_bytes(evaluated[0])
    report.main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "contracts: the model (" in page and "general_agreement, acc: " in page
    assert "legal" in (tmp_path / "summary.txt").read_text()


def test_a_byte_limit_takes_whole_documents_in_the_order_of_their_ids(
    model_folder, model, tokenizer, documents, tmp_path
):
    limit = ["--max_bytes_per_source", "200", "--context_length", "64"]
    main(["--model", str(model_folder), "--documents", str(documents), "--output", str(tmp_path / "eval"), *limit])
    entry = json.loads((tmp_path / "eval/results.json").read_text())["bits_per_byte"]["sources"]["stories"]
    texts = [each.text for each in held_out_scores.chosen_documents(documents / "test/stories", None)]
    assert "number 2" in texts[0]  # the fixture's ids run against the rows
    scores = score_documents(model, tokenizer, texts[:1], context_length=64)
    assert (entry["documents"], entry["bytes"]) == (1, scores[0].bytes)
    assert entry["nats"] == pytest.approx(scores[0].nats)
    assert entry["confidence_interval"] is None and entry["xz_documents"] is None


def documents_of(bits, sizes, families=None):
    """Scored documents of so many bits a byte and bytes."""
    rows = zip(bits, sizes, families or [None] * len(bits), strict=True)
    return [
        {"id": str(n), "family": family, "nats": np.log(2) * cost * size, "bytes": size, "tokens": 7, "restored": True}
        for n, (cost, size, family) in enumerate(rows)
    ]


def test_interval_resamples_nats_and_bytes_of_a_document_together():
    entry = held_out_scores.summed("law", documents_of([1.5] * 4, [10, 1000, 100, 5]), {}, seed=0)
    assert entry["bits_per_byte"] == pytest.approx(1.5)
    assert entry["confidence_interval"] == pytest.approx([1.5, 1.5])  # every document costs 1.5 bits a byte
    assert intervals.RESAMPLES >= 1000


def test_interval_resamples_families_of_documents(model, tokenizer, tmp_path):
    bits, sizes = [1.0] * 30 + [2.0, 3.0, 2.0, 3.0], [100] * 34
    apart = held_out_scores.summed("law", documents_of(bits, sizes), {}, seed=0)
    family = held_out_scores.summed("law", documents_of(bits, sizes, ["gpl"] * 30 + [None] * 4), {}, seed=0)
    assert (apart["families"], family["families"]) == (34, 5) and apart["documents"] == family["documents"] == 34
    assert apart["bits_per_byte"] == family["bits_per_byte"]
    width = [high - low for low, high in (apart["confidence_interval"], family["confidence_interval"])]
    assert width[1] > 2 * width[0], "30 versions of a licence are not 30 documents"
    alone = held_out_scores.summed("law", documents_of(bits[:3], sizes[:3], ["gpl"] * 3), {}, seed=0)
    assert alone["families"] == 1 and alone["confidence_interval"] is None
    folder = tmp_path / "documents" / "test" / "law"
    folder.mkdir(parents=True)
    rows = [{"id": str(n), "text": "The goods.", "date": None, "family": n // 2} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    arguments = parse_arguments(["--documents", str(tmp_path / "documents"), "--context_length", "64"])
    assert (
        held_out_scores.score_sources(model, tokenizer, arguments, SharedWork())[0]["sources"]["law"]["families"] == 2
    )


def test_standard_error_of_a_ratio_matches_its_formula():
    generator = np.random.default_rng(0)
    sizes = generator.integers(10, 60, size=400)
    nats = sizes * generator.uniform(0.5, 1.5, size=400)
    items = [{"nats": [cost], "bytes": [size], "gold": 0} for cost, size in zip(nats, sizes, strict=True)]
    result = measured(gold_bits(items), "task", len(items), seed=0)
    bits, ratio = nats / np.log(2), nats.sum() / np.log(2) / sizes.sum()
    stderr = np.sqrt(((bits - ratio * sizes) ** 2).sum() * 400 / 399) / sizes.sum()
    assert result["value"] == pytest.approx(ratio)
    assert result["stderr"] == pytest.approx(stderr, rel=0.1)
    assert result["interval"] == pytest.approx([ratio - 1.96 * stderr, ratio + 1.96 * stderr], rel=0.01)


def test_model_of_random_weights_is_near_chance_on_every_task(model, tokenizer):
    results = run_tasks(model, tokenizer, TASKS, context_length=128, batch_size=8)
    for name, chance in {"legal_sense": 0.25, "general_agreement": 0.5, "dosing_shorthand": 0.25}.items():
        result = results[name]
        assert result["chance"] == chance
        for metric in result["metrics"].values():
            assert metric["value"] == pytest.approx(
                chance, abs=3.5 * (chance * (1 - chance) / result["num_items"]) ** 0.5
            )
            assert 0 < metric["stderr"] < 0.09 and metric["chance"] == chance
            assert metric["interval"][0] <= metric["value"] <= metric["interval"][1]
        assert result["gold_bits_per_byte"]["value"] > 1
        assert abs(result["probability_margin"]["value"]) < 1
        assert result["boundary_mismatches"] == result["truncated"] == 0
    assert set(results["legal_sense"]["metrics"]) == {"acc", "acc_norm"}


class MemorisingModel(LlamaForCausalLM):
    """Predicts the next token of known sequences, from their first token, and is uniform elsewhere."""

    def forward(self, input_ids, **kwargs):
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, sequence in enumerate(input_ids.tolist()):
            for position in range(len(sequence)):
                for following in self.known.get(tuple(sequence[: position + 1]), ()):
                    logits[row, position, following] = 20.0
        return CausalLMOutputWithPast(logits=logits)


def memorising(model, tokenizer, items, prefix):
    """Build a model that knows the right continuation of each item after a prefix."""
    known = defaultdict(set)
    for item in items:
        tokens = [*prefix, *tokenizer(item["context"] + item["choices"][item["gold"]])["input_ids"]]
        for position in range(1, len(tokens)):
            known[tuple(tokens[:position])].add(tokens[position])
    memorised = MemorisingModel(model.config)
    memorised.known = known
    return memorised.eval()


@pytest.mark.parametrize("name", TASKS)
def test_model_that_knows_the_answers_after_the_start_token_gets_all_right(model, tokenizer, requests, name):
    memorised = memorising(model, tokenizer, requests[name], [tokenizer.bos_token_id])
    result = run_tasks(memorised, tokenizer, [name], context_length=128, batch_size=4)[name]
    assert result["metrics"]["acc"]["value"] == 1.0
    assert result["gold_bits_per_byte"]["value"] < 0.3
    assert result["probability_margin"]["value"] > 0.9


def test_model_that_knows_the_answers_without_a_start_token_knows_nothing(model, tokenizer, requests):
    memorised = memorising(model, tokenizer, requests["legal_sense"], [])
    result = run_tasks(memorised, tokenizer, ["legal_sense"], context_length=128, batch_size=4)["legal_sense"]
    assert result["metrics"]["acc"]["value"] < 0.5


def test_tokenizer_that_joins_context_and_continuation_is_counted(model, tokenizer):
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings["pre_tokenizer"]["use_regex"] = False  # tokens may cross from one word to the next
    settings["model"]["vocab"]["s\u0120"] = len(tokenizer)  # the end of "is" and the space after it
    settings["model"]["merges"].insert(0, ["s", "\u0120"])
    joining = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)), eos_token=tokenizer.eos_token
    )
    config = LlamaConfig(**model.config.to_dict() | {"vocab_size": len(joining)})
    wide = LlamaForCausalLM(config).eval()
    result = run_tasks(wide, joining, ["legal_sense"], context_length=200, batch_size=4)["legal_sense"]
    assert 0 < result["boundary_mismatches"] <= result["num_items"]


def test_text_tokenized_differently_before_a_continuation_is_scored_as_a_whole(model, tokenizer):
    """A joined token belongs to the continuation, so the parts still add up to the whole text."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings["pre_tokenizer"]["use_regex"] = False
    settings["model"]["vocab"]["s\u0120"] = len(tokenizer)
    settings["model"]["merges"].insert(0, ["s", "\u0120"])
    joining = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)), eos_token=tokenizer.eos_token
    )
    wide = LlamaForCausalLM(LlamaConfig(**model.config.to_dict() | {"vocab_size": len(joining)})).eval()
    scorer = RequestScorer(wide, joining, context_length=64, batch_size=2, work=SharedWork())
    encoded, mismatch = scorer.encode_item([["The keys", " are here."], ["The keys", " is here."]])
    assert mismatch
    for each, text in zip(encoded, ("The keys are here.", "The keys is here."), strict=True):
        assert each.context[1:] + each.continuation == joining(text)["input_ids"]
        assert each.bytes == len(text) - len("The key")
    costs = [cost for cost, _ in scorer.likelihoods(encoded, "test")]
    whole = [score_documents(wide, joining, [text], context_length=64)[0].nats for text in ("The key",)]
    full = score_documents(wide, joining, ["The keys are here."], context_length=64)[0].nats
    assert whole[0] + costs[0] == pytest.approx(full, rel=1e-5)


@pytest.mark.parametrize("template", ["$A <|endoftext|>", "<|endoftext|> $A"])
def test_tokenizer_that_adds_bos_or_eos_by_itself_scores_the_same(model, tokenizer, template):
    adding = deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    plain, added = (
        run_tasks(model, each, ["dosing_shorthand"], context_length=128, batch_size=8) for each in (tokenizer, adding)
    )
    assert plain == added


def test_scores_are_those_of_lm_eval_where_it_scores_the_same_tokens(model, tokenizer):
    """lm-eval's own HFLM, with the start token added as text, against ours."""
    from lm_eval.models.huggingface import HFLM

    arguments = parse_arguments(["--tasks", "dosing_shorthand"])
    benchmark, items, shots, _ = load_tasks(arguments)["dosing_shorthand"]
    requests = [pair for entry in build_requests(benchmark, items, shots, 0, 0) for pair in entry["requests"]]
    lm = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=8, add_bos_token=True)
    started = [(f"{tokenizer.bos_token}{context}", continuation) for context, continuation in requests]
    theirs = [cost for cost, _ in lm.loglikelihood([Instance("loglikelihood", {}, each, 0) for each in started])]
    scorer = RequestScorer(model, tokenizer, context_length=128, batch_size=8, work=SharedWork())
    ours = scorer.likelihoods([scorer.encode_item([pair])[0][0] for pair in requests], "test")
    assert [-cost for cost, _ in ours] == pytest.approx(theirs, rel=1e-5)


def test_written_answers_are_scored_and_do_not_depend_on_company(model, tokenizer, tmp_path):
    rows = [{"query": f"{text} was it?", "answer": "12"} for text in ("What", "How much", "When")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--task_data", f"tatqa={tmp_path / 'rows.jsonl'}"]
    results = [
        run_tasks(model, tokenizer, ["tatqa"], context_length=64, batch_size=size, argv=argv)["tatqa"]
        for size in (1, 3)
    ]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["chance"] is None
    assert results[0]["gold_bits_per_byte"]["value"] > 1


def test_a_finished_piece_that_was_damaged_is_scored_again(tmp_path, capfd):
    calls = []

    def work(piece: str) -> dict:
        calls.append(piece)
        return {"bits": 0.125 * len(calls), "of": [piece, None]}

    first = SharedWork(tmp_path).map("kind", ["a", "b", "c"], work, "pieces")
    damaged = sorted(tmp_path.glob("*.json"))
    damaged[0].write_text(damaged[0].read_text().replace("0.", "7."))
    damaged[1].write_text(damaged[1].read_text()[:-3])
    calls.clear()
    again = SharedWork(tmp_path).map("kind", ["a", "b", "c"], work, "pieces")
    assert len(calls) == 2 and [one["of"] for one in again] == [one["of"] for one in first]
    assert all(one["bits"] < 1 for one in again)
    assert capfd.readouterr().err.count("a piece is scored again: ") == 2
    assert SharedWork(tmp_path).map("kind", ["a", "b", "c"], work, "pieces") == again and len(calls) == 2


def test_a_stopped_evaluation_resumes_and_gives_the_same(model_folder, documents, evaluated, tmp_path, monkeypatch):
    output = tmp_path / "eval"
    command = ["--model", str(model_folder), "--documents", str(documents), "--output", str(output), "--xz"]
    command += ["--tasks", "general_agreement", "--prompts", "The parties", "The keys", "--context_length", "64"]
    scored, real = [], held_out_scores.score_documents

    def stop_at_the_third(*arguments, **keywords):
        scored.append(1)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(held_out_scores, "score_documents", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert not output.exists() and len(list((tmp_path / ".eval.parts").glob("*.json"))) >= 2
    main(command)
    assert len(scored) == 4  # only the third source was left to score
    assert not (tmp_path / ".eval.parts").exists()
    assert (output / "results.json").exists()
    ours, whole = json.loads((output / "results.json").read_text()), json.loads(evaluated[0])
    assert ours["bits_per_byte"] == whole["bits_per_byte"] and ours["samples"] == whole["samples"]
    assert ours["tasks"]["general_agreement"]["metrics"] == whole["tasks"]["general_agreement"]["metrics"]


def test_a_second_evaluation_into_the_same_folder_is_refused_while_the_first_runs(model_folder, tmp_path):
    command = ["--model", str(model_folder), "--output", str(tmp_path / "eval"), "--prompt", "The"]
    with locked_output(tmp_path / "eval"):
        second = subprocess.run([sys.executable, run_eval.__file__, *command], capture_output=True, text=True)
        assert second.returncode == 1 and f"another evaluation writes to {tmp_path / 'eval'}; wait" in second.stderr
        main([*command[:3], str(tmp_path / "other"), *command[4:]])
    main(command)
    assert {path.name for path in tmp_path.iterdir()} == {"eval", "other"}, "nothing is left beside the results"


def test_variables_that_another_job_left_are_refused_and_not_waited_on(model_folder, tmp_path):
    command = [sys.executable, run_eval.__file__, "--model", str(model_folder), "--prompt", "The"]
    command += ["--output", str(tmp_path / "eval")]
    left = os.environ | {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    refused = subprocess.run(command, env=left, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 1 and "RANK, MASTER_ADDR, MASTER_PORT is not set" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr


LAUNCH = """import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("launched", [True, False])
def test_an_evaluation_ends_with_its_launcher_but_not_with_a_shell(tmp_path, launched):
    """A launcher that is killed, as its own parent was, would leave the evaluation to hold the GPU."""
    code = "import sys, time; sys.path.insert(0, sys.argv[1]); import run_eval; run_eval.check_launch(); "
    code += "print('ready', flush=True); time.sleep(100)"
    environment = os.environ | ({"ACCELERATE_MIXED_PRECISION": "no"} if launched else {})
    command = [sys.executable, "-c", LAUNCH, sys.executable, "-c", code, str(Path(run_eval.__file__).parent)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        evaluation = psutil.Process(int(launcher.stdout.readline()))
        assert launcher.stdout.readline() == "ready\n"
        launcher.kill()
    gone, alive = psutil.wait_procs([evaluation], timeout=5 if launched else 1)
    for process in alive:
        process.kill()
    assert bool(gone) == launched


def test_a_model_saved_again_gives_the_same_numbers(model_folder, documents, evaluated, tmp_path):
    model, tokenizer = load_model(str(model_folder))
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    command = ["--model", str(tmp_path / "again"), "--documents", str(documents), "--context_length", "64"]
    main([*command, "--output", str(tmp_path / "eval"), "--tasks", "general_agreement"])
    ours, whole = json.loads((tmp_path / "eval/results.json").read_text()), json.loads(evaluated[0])
    assert ours["model_sha256"] == whole["model_sha256"]
    for source, entry in ours["bits_per_byte"]["sources"].items():
        assert entry["nats"] == whole["bits_per_byte"]["sources"][source]["nats"]
    ours, whole = (each["tasks"]["general_agreement"] | {"by_overlap": None} for each in (ours, whole))
    assert ours == whole


@pytest.mark.parametrize(
    ("gpu", "launched_in", "given", "dtype"),
    [
        (True, "bf16", [], "bfloat16"),
        (True, "no", [], "float32"),
        (True, None, [], "float32"),
        (False, "bf16", [], "float32"),
        (True, "bf16", ["--dtype", "float16"], "float16"),
    ],
)
def test_a_gpu_computes_in_the_precision_of_its_launch_file(gpu, launched_in, given, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched_in:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched_in)
    assert run_eval.parse_arguments(given).dtype == dtype


def test_two_processes_give_the_same_numbers(model_folder, documents, evaluated, tmp_path):
    script = str(TASKS_DIR.parent / "run_eval.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    command = [sys.executable, *launch, "--model", str(model_folder), "--documents", str(documents), "--xz"]
    command += ["--tasks", "general_agreement", "--prompts", "The parties", "The keys", "--context_length", "64"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run([*command, "--output", str(tmp_path / "eval")], check=True, env=environment, cwd=tmp_path)
    ours, whole = json.loads((tmp_path / "eval/results.json").read_text()), json.loads(evaluated[0])
    assert ours["bits_per_byte"] == whole["bits_per_byte"] and ours["samples"] == whole["samples"]
    assert ours["model_sha256"] == whole["model_sha256"]
    assert ours["settings"] == whole["settings"] | {"decontamination_sha256": None}
    assert ours["settings"]["dtype"] == "float32"
    ours, whole = (each["tasks"]["general_agreement"] | {"by_overlap": None} for each in (ours, whole))
    assert ours == whole


def test_later_text_is_scored_by_month_and_baselines_beside(model_folder, tmp_path):
    for split, dates in (("test", ["2024-01-05", None]), ("future", ["2024-02-01", "2024-02-09", "2024-03-01", None])):
        (tmp_path / "documents" / split / "news").mkdir(parents=True)
        columns = {
            "id": [str(n) for n in range(len(dates))],
            "text": ["The goods are here."] * len(dates),
            "date": dates,
        }
        pq.write_table(pa.table(columns), tmp_path / "documents" / split / "news" / "0.parquet")
    command = ["--model", str(model_folder), "--documents", str(tmp_path / "documents"), "--context_length", "32"]
    main([*command, "--output", str(tmp_path / "eval"), "--baselines", str(model_folder)])
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert {month: e["documents"] for month, e in results["bits_per_byte"]["months"].items()} == {
        "2024-02": 2,
        "2024-03": 1,
    }
    (other,) = (tmp_path / "eval/baselines").glob("*/results.json")
    assert json.loads(other.read_text())["bits_per_byte"] == results["bits_per_byte"]


def test_a_baseline_is_scored_with_both_contexts_and_once_for_its_weights(
    model_folder, model, documents, tmp_path, monkeypatch
):
    torch.manual_seed(1)
    shutil.copytree(model_folder, tmp_path / "other")
    LlamaForCausalLM(model.config).save_pretrained(tmp_path / "other")
    scored, original = [], held_out_scores.score_documents

    def spy(model, *rest, **options):
        scored.append(Path(model.name_or_path).name)
        return original(model, *rest, **options)

    monkeypatch.setattr(held_out_scores, "score_documents", spy)
    command = ["--model", str(model_folder), "--documents", str(documents), "--context_length", "32"]
    command += ["--own_contexts", "--baseline_scores", str(tmp_path / "kept"), "--baselines", str(tmp_path / "other")]
    longest = model.config.max_position_embeddings

    main([*command, "--output", str(tmp_path / "first")])
    first = json.loads((tmp_path / "first/results.json").read_text())
    contexts = {name: entry["context_length"] for name, entry in first["baselines"].items()}
    assert contexts == {"other": 32, f"other--{longest}-tokens": longest}
    assert "other" in scored and model_folder.name in scored
    for name, entry in first["baselines"].items():
        own = json.loads((tmp_path / "first/baselines" / name / "results.json").read_text())
        sources = own["bits_per_byte"]["sources"]
        assert entry["bits_per_byte"] == {source: each["bits_per_byte"] for source, each in sources.items()}
        assert entry["model_sha256"] == own["model_sha256"] != first["model_sha256"]

    scored.clear()
    main([*command, "--output", str(tmp_path / "second")])
    assert json.loads((tmp_path / "second/results.json").read_text()) == first
    assert "other" not in scored and model_folder.name in scored, "its scores were kept, the model's were not"

    LlamaForCausalLM(model.config).save_pretrained(tmp_path / "other")  # other weights under the same name
    main([*command, "--output", str(tmp_path / "third")])
    third = json.loads((tmp_path / "third/results.json").read_text())
    assert "other" in scored and third["baselines"]["other"] != first["baselines"]["other"]


def test_a_baseline_of_a_shorter_context_is_scored_in_overlapping_windows_as_it_would_be_alone(model_folder, tmp_path):
    folder = tmp_path / "documents" / "test" / "contracts"
    folder.mkdir(parents=True)
    text = " ".join(f"On day {day} the parties met for no good." for day in range(30))
    pq.write_table(pa.Table.from_pylist([{"id": "a", "text": text, "date": None}]), folder / "00000.parquet")
    shorter = shutil.copytree(model_folder, tmp_path / "shorter")
    with_config(max_position_embeddings=64)(shorter)
    documents = ["--documents", str(tmp_path / "documents")]
    main(["--model", str(shorter), *documents, "--output", str(tmp_path / "alone")])
    beside = ["--baselines", str(shorter), "--output", str(tmp_path / "eval")]
    main(["--model", str(model_folder), *documents, *beside])
    paths = ("alone/results.json", "eval/baselines/shorter/results.json", "eval/results.json")
    alone, baseline, own = (json.loads((tmp_path / path).read_text()) for path in paths)
    assert [each["settings"]["stride"] for each in (alone, baseline, own)] == [32, 32, 64]
    assert baseline["bits_per_byte"] == alone["bits_per_byte"]
    main(["--model", str(model_folder), *documents, "--stride", "48", *beside])
    settings = [json.loads((tmp_path / path).read_text())["settings"] for path in paths[1:]]
    assert [each["stride"] for each in settings] == [48, 48]


def test_a_baseline_whose_tokenizer_or_configuration_was_corrected_is_scored_again(
    model_folder, documents, tmp_path, monkeypatch
):
    other, scored, original = shutil.copytree(model_folder, tmp_path / "other"), [], held_out_scores.score_documents

    def spy(model, *rest, **options):
        scored.append(Path(model.name_or_path).name)
        return original(model, *rest, **options)

    monkeypatch.setattr(held_out_scores, "score_documents", spy)
    command = ["--model", str(model_folder), "--documents", str(documents), "--context_length", "32"]
    command += ["--baseline_scores", str(tmp_path / "kept"), "--baselines", str(other), "--output"]
    main([*command, str(tmp_path / "eval")])
    for name, change in (("config.json", {"rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}}),) + (
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
    ):
        scored.clear()
        content = json.loads((other / name).read_text()) | change
        (other / name).write_text(json.dumps(content))
        main([*command, str(tmp_path / "eval")])
        assert "other" in scored, name


def test_the_models_own_results_are_written_where_a_baseline_cannot_be_loaded(model_folder, tmp_path, caplog):
    other = shutil.copytree(model_folder, tmp_path / "other")
    (other / "tokenizer.json").write_text("{}")
    command = ["--model", str(model_folder), "--output", str(tmp_path / "eval"), "--prompts", "The", "--own_contexts"]
    main([*command, "--baselines", "nobody/absent", str(other), str(model_folder)])
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert results["samples"] and list(results["baselines"]) == [model_folder.name]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    said = [text.partition(" was not scored: ")[0] for text in results["baselines_not_scored"].values()]
    assert said == ["the baseline nobody/absent", f"the baseline {other}"]
    assert lines == [f"evaluate: {text}" for text in results["baselines_not_scored"].values()]
    problems = [one["text"] for one in overview.find_problems(RunFiles(tmp_path)) if one["level"] == "bad"]
    assert any(text.startswith("The baseline nobody/absent was not scored: ") for text in problems)


@pytest.fixture(scope="module")
def unscorable(model_folder, tmp_path_factory):
    """Models that can be loaded and not scored: without a token that starts a document, and of no numbers."""
    folder = tmp_path_factory.mktemp("unscorable")
    model, tokenizer = load_model(str(model_folder))
    model.save_pretrained(folder / "startless")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(folder / "startless")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(folder / "damaged")
    tokenizer.save_pretrained(folder / "damaged")
    return {"startless": "neither a bos nor an eos token", "damaged": "the weights are damaged"}, folder


@pytest.mark.parametrize("work", ["documents", "tasks", "prompts"])
def test_a_baseline_that_cannot_be_scored_is_noted_and_the_others_are_scored(
    model_folder, documents, unscorable, work, tmp_path
):
    reasons, folder = unscorable
    asked = {"documents": ["--documents", str(documents)], "tasks": ["--tasks", "dosing_shorthand"]}
    asked = [*asked.get(work, ["--prompts", "The"]), "--output", str(tmp_path / "eval")]
    others = [*(str(folder / name) for name in reasons), str(model_folder)]
    main(["--model", str(model_folder), *asked, "--baselines", *others])
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert list(results["baselines"]) == [model_folder.name] and not (tmp_path / ".eval.parts").exists()
    for (name, reason), said in zip(reasons.items(), results["baselines_not_scored"].values(), strict=True):
        assert said.startswith(f"the baseline {folder / name} was not scored: ") and reason in said
        with pytest.raises(SystemExit, match=f"--model: .*{reason}"):
            main(["--model", str(folder / name), *asked])


def test_a_baseline_that_one_of_two_processes_cannot_score_ends_in_both(model_folder, documents, unscorable, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", run_eval.__file__]
    command = [sys.executable, *launch, "--model", str(model_folder), "--documents", str(documents)]
    command += ["--output", str(tmp_path / "eval"), "--baselines", str(unscorable[1] / "damaged")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=200)
    assert list(json.loads((tmp_path / "eval/results.json").read_text())["baselines_not_scored"])


def test_the_next_try_for_a_baseline_scores_nothing_twice(model_folder, documents, tmp_path, monkeypatch):
    scored, original = [], held_out_scores.score_documents

    def spy(model, *rest, **options):
        scored.append(Path(model.name_or_path).name)
        return original(model, *rest, **options)

    monkeypatch.setattr(held_out_scores, "score_documents", spy)
    other = shutil.copytree(model_folder, tmp_path / "other")
    content = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text("{}")
    config = json.loads((other / "config.json").read_text()) | {"rms_norm_eps": 1e-3}  # else it is the same model
    (other / "config.json").write_text(json.dumps(config))
    command = ["--model", str(model_folder), "--documents", str(documents), "--context_length", "32"]
    command += ["--output", str(tmp_path / "eval"), "--baselines", str(other)]
    main(command)
    first = (tmp_path / "eval" / "results.json").read_bytes()
    assert json.loads(first)["baselines_not_scored"] and set(scored) == {model_folder.name}
    scored.clear()
    main(command)
    assert not scored and (tmp_path / "eval" / "results.json").read_bytes() == first
    (other / "tokenizer.json").write_text(content)
    main(command)
    assert set(scored) == {"other"} and not (tmp_path / ".eval.parts").exists()
    assert not json.loads((tmp_path / "eval" / "results.json").read_text())["baselines_not_scored"]


def test_a_baseline_of_the_hub_may_name_a_revision(tmp_path, monkeypatch):
    assert run_eval.named_revision("owner/model@v1.0") == ("owner/model", "v1.0")
    assert run_eval.named_revision("owner/model") == ("owner/model", None)
    (tmp_path / "a@b").mkdir()
    assert run_eval.named_revision(str(tmp_path / "a@b")) == (str(tmp_path / "a@b"), None)


def test_baselines_whose_folders_have_one_name_are_kept_apart_and_none_is_named_twice(model_folder, model, tmp_path):
    torch.manual_seed(1)
    other = LlamaForCausalLM(model.config)
    for folder in ("a", "b"):
        shutil.copytree(model_folder, tmp_path / folder / "model")
    other.save_pretrained(tmp_path / "b" / "model")
    command = ["--model", str(model_folder), "--output", str(tmp_path / "eval"), "--prompts", "The", "--baselines"]
    main([*command, str(tmp_path / "a" / "model"), str(tmp_path / "b" / "model")])
    paths = sorted(tmp_path.glob("eval/baselines/*/results.json"))
    found = {path.parent.name: json.loads(path.read_text()) for path in paths}
    assert found.keys() == {"a--model", "b--model"}
    assert found["a--model"]["model_sha256"] != found["b--model"]["model_sha256"]
    assert [each["name"] for each in found.values()] == [f"the local model {folder}/model" for folder in "ab"]
    summaries = json.loads((tmp_path / "eval/results.json").read_text())["baselines"]
    assert {key: each["name"] for key, each in summaries.items()} == {key: each["name"] for key, each in found.items()}
    names = run_eval.baseline_names([str(model_folder), "owner/model@v1", "owner/model@v2"])
    assert list(names.values()) == ["model", "owner/model@v1", "owner/model@v2"]
    with pytest.raises(SystemExit, match=r"is named twice\n.*there is no folder .*/absent"):
        main([*command, str(model_folder), f"{model_folder}/", str(tmp_path / "absent")])


def test_a_task_none_of_whose_continuations_fits_the_context_is_refused(model, tokenizer):
    with pytest.raises(NotScored, match="general_agreement: no item fits context_length=4"):
        run_tasks(model, tokenizer, ["general_agreement"], context_length=4, batch_size=4)


def test_items_whose_continuation_does_not_fit_the_context_are_left_out_and_counted(
    model, tokenizer, requests, decontamination, caplog
):
    def longest(item):
        return max(len(tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in item["choices"])

    lengths = sorted(longest(item) for item in requests["general_agreement"])
    limit = lengths[len(lengths) // 2]
    fitting = sum(length <= limit for length in lengths)
    assert 0 < fitting < len(lengths)
    argv = ["--decontamination", str(decontamination)]
    options = {"context_length": limit, "batch_size": 4, "argv": argv}
    with caplog.at_level("INFO"):
        result = run_tasks(model, tokenizer, ["general_agreement"], **options)["general_agreement"]
    assert (result["num_items"], result["left_out"]) == (fitting, len(lengths) - fitting)
    groups = result["by_overlap"]
    assert groups.keys() <= {"clean", "overlapping", "not_checkable"} and len(groups) > 1
    assert sum(group["num_items"] for group in groups.values()) == fitting
    assert f"general_agreement: {len(lengths) - fitting} of {len(lengths)} items are not scored" in caplog.text


def test_requests_truncated_to_the_context_are_counted(model, tokenizer):
    result = run_tasks(model, tokenizer, ["legal_sense"], context_length=60, batch_size=4)["legal_sense"]
    assert result["truncated"] > 0


@pytest.mark.parametrize("login", ["environment", "file"])
def test_a_private_model_is_loaded_with_a_token_from_the_environment_or_the_login_file(model_folder, tmp_path, login):
    """The model is read after the tasks, which must not take the token away."""
    (tmp_path / "home").mkdir()
    with start_hub() as (_, endpoint):
        environment = hub_environment(endpoint, tmp_path / "home")
        token = environment.pop("HF_TOKEN")
        create = "import sys, huggingface_hub as hub; api = hub.HfApi(token=sys.argv[1])\n"
        create += "api.create_repo('firm/model', private=True)\n"
        create += "api.upload_folder(repo_id='firm/model', folder_path=sys.argv[2])"
        subprocess.run([sys.executable, "-c", create, token, str(model_folder)], check=True, env=environment)
        script = str(TASKS_DIR.parent / "run_eval.py")
        command = [sys.executable, script, "--model", "firm/model", "--tasks", "general_agreement"]
        command += ["--output", str(tmp_path / "eval")]
        without = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert without.returncode and "cannot be read from the Hub" in without.stderr
        if login == "file":
            (tmp_path / "home" / "token").write_text(token)  # as `hf auth login` does
        subprocess.run(command, check=True, env=environment | ({"HF_TOKEN": token} if login == "environment" else {}))
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert results["model"] == "firm/model" and len(results["revision"]) == 40


def test_exported_requests_cover_every_item_with_its_answer(requests):
    assert sorted(requests) == sorted(TASKS)
    for name, items in requests.items():
        benchmark = read_benchmarks()[name]
        with (benchmark.file.parent / benchmark.data_files["test"]).open(encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
        assert [item["id"] for item in items] == [row["id"] for row in rows]
        for item, row in zip(items, rows, strict=True):
            assert 0 <= item["gold"] < len(item["choices"]) == len(row["choices"])
            assert item["gold"] == row["gold"]
            assert item["choices"][item["gold"]].strip() == row["choices"][row["gold"]]
            assert item["context"] == item["context"].rstrip()


def test_everything_wrong_is_listed_at_once(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "thesis.txt").write_text("keep me")
    (tmp_path / "empty").mkdir()
    command = ["--model", str(tmp_path / "empty"), "--documents", str(tmp_path), "--output", str(tmp_path / "eval")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--tasks", "legal_sense,mmmlu", "--batch_size", "0", "--context_length", "4"])
    message = str(stop.value)
    assert "'mmmlu': not a task of this repository; there are arc_challenge, arc_easy, " in message
    assert "and the groups blimp, bloomberg_finance, finance, " in message
    assert "--batch_size=0 must be at least 1" in message
    assert "--context_length=4 must be at least 8" in message
    assert f"{tmp_path / 'test'}/<source>/*.parquet" in message
    assert "holds something else than an earlier evaluation" in message
    assert "lacks config.json, *.safetensors, tokenizer*.json" in message
    assert (tmp_path / "eval" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--context_length", "129"], "--context_length=129 is more than the model's 128 positions"),
        (["--context_length", "32", "--stride", "33"], "--stride=33 is more than the context of 32 tokens"),
        ([], "nothing to do"),
    ],
)
def test_settings_the_model_cannot_serve_are_refused(model_folder, tmp_path, extra, complaint):
    with pytest.raises(SystemExit, match=complaint):
        main(["--model", str(model_folder), "--output", str(tmp_path / "eval"), *extra])


def test_rows_for_a_task_that_is_not_chosen_are_refused_with_the_names_that_are(model_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    command = ["--model", str(model_folder), "--output", str(tmp_path / "eval"), "--tasks", "arc_easy,mmlu_anatomy"]
    rows = [f"{name}={tmp_path / 'rows.jsonl'}" for name in ("arc_esay", "mmlu", "arc_easy", "legal_sense")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--task_data", *rows])
    known = f"there are {', '.join(['arc_easy', 'mmlu_anatomy', *read_benchmarks()['mmlu_anatomy'].groups])}"
    assert str(stop.value).splitlines()[1:] == [
        f"  --task_data: {name} is not read, since it is no chosen task nor a group of one; {known}"
        for name in ("arc_esay", "legal_sense")
    ]
    with pytest.raises(SystemExit, match="--task_data: mmlu is not read, .*; there are general_agreement, "):
        main(["--export_requests", str(tmp_path / "benchmarks"), "--task_data", rows[1]])


@pytest.mark.parametrize("name", ["{}/absent", "clients/acme", "./acme", "~/acme"])
def test_model_folder_that_is_not_there_is_refused_without_asking_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients").mkdir()
    with pytest.raises(SystemExit, match="there is no folder"):
        main(["--model", name.format(tmp_path), "--output", str(tmp_path / "eval"), "--prompts", "The"])


def test_damaged_weights_leave_the_earlier_results_alone(model_folder, tmp_path):
    model, tokenizer = load_model(str(model_folder))
    config = LlamaConfig(**model.config.to_dict() | {"num_hidden_layers": 3})
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config.save_pretrained(tmp_path / "model")  # names a layer that the weights lack
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/results.json").write_text("earlier")
    with pytest.raises(SystemExit, match="do not fit the model"):
        main(["--model", str(tmp_path / "model"), "--output", str(tmp_path / "eval"), "--prompts", "The"])
    assert (tmp_path / "eval/results.json").read_text() == "earlier"


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(["numbers"] * 99))


def with_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "layer_types": None, **values}))

    return change


def with_pattern(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
        path.write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (pickled, "its files cannot be read: SafetensorError"),
        (with_pattern("(("), "its files cannot be read: Exception: Oniguruma error: end pattern"),
        (with_pattern("(x+x+)+y"), "the tokenizer fails on a text, so the model cannot be scored: .*retry-limit"),
        (with_config(num_hidden_layers=10**6), "config.json names 1,000,000 layers; up to 1,000 are built"),
        (with_config(hidden_size=10**6), "describes 1,285,000,000 parameters, its safetensors hold 41,120 numbers"),
        (with_config(hidden_size=10**20), "no model is as config.json says"),
        (with_config(num_attention_heads=0), "no model is as config.json says|cannot be read"),
        (with_config(num_hidden_layers="many"), "its config.json cannot be read: .*expected int, got str"),
    ],
)
def test_a_crafted_model_is_refused_with_a_message_before_it_is_built(model_folder, tmp_path, harm, complaint):
    shutil.copytree(model_folder, tmp_path / "model")
    harm(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "eval"), "--prompt", "x" * 40]
    with pytest.raises(SystemExit, match=f"(?s){complaint}"):
        run_script(partial(main, command))
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 900 + "a", "a: " + "b" * 2**21, "? [a]\n: !!int abc"])
def test_yaml_that_would_take_minutes_or_break_the_parser_is_refused(tmp_path, text):
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "probe.yaml").write_text(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match="probe.yaml: not plain YAML data: ."):
        read_benchmarks(tmp_path)
    with pytest.raises(ValueError, match="(?s)recipe.yaml: not valid YAML: .*run the stage that writes it again"):
        RunFiles(tmp_path).yaml("recipe.yaml")


def test_prompt_longer_than_the_context_is_continued_from_its_end(model, tokenizer):
    sample = generate_sample(model, tokenizer, "The parties agree. " * 40, context_length=32, seed=0)
    assert sample["prompt"] == "The parties agree. " * 40 and isinstance(sample["text"], str)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("description: !function harm.run", "not plain YAML data"),
        ("dataset_path: somebody/dataset\nrows: harm", "rows: 'harm': benchmark_rows.py has"),
        ("data_files: {test: ../items.jsonl}", "must name files beside the YAML"),
        ("doc_to_text: '{{context}}'", "unknown keys: doc_to_text"),
    ],
)
def test_task_that_is_not_plain_data_is_refused(tmp_path, line, complaint):
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "probe.yaml").write_text("tasks: {probe: }\n" + line + "\n")
    with pytest.raises(ValueError, match=complaint):
        read_benchmarks(tmp_path)
