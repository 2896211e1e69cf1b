# SPDX-License-Identifier: Apache-2.0
"""A model that knows documents by heart is found out; one that saw nothing is not, nor are unseen documents."""

import copy
import html
import json
import shutil
from hashlib import sha256

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import audit_leaks
from atomic_files import write_json
from audit_leaks import find_personal_values, open_ledger
from compare_arms import leak_columns
from corpus.canaries import CANARIES, make_record, record_text
from corpus.personal_data import Redactor
from figure_style import style
from mixture.shard_writer import load_tokenizer
from provenance.audited_documents import choose_held_out, choose_trained
from provenance.canary_exposure import measure_exposures, summarise_exposures
from provenance.leak_measures import PROMPT_TOKENS, SAMPLES, count_continued, read_documents, separate, times_group
from publishing.leak_limits import refuse_leaks
from recipe_config import RecipeError
from recipe_loading import load_recipe
from recorded_files import record_run_files
from report import build_sections, write_html
from run_files import RunFiles
from sections import leaks
from vocabulary.token_bytes import token_bytes


WINDOW = 160  # tokens: a prompt and a continuation of 100
DOCUMENTS = 12


@pytest.fixture(scope="module")
def run(evaluated_run, tmp_path_factory):
    """The run as if it had been trained ten times as long, so that the ledger has read most of its documents."""
    folder = evaluated_run.copy(tmp_path_factory.mktemp("audit") / "run").output_dir
    for state in (folder / "checkpoints").glob("*/state.json"):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"max_steps": 200}))
    return folder


@pytest.fixture(scope="module")
def ledger(run):
    return open_ledger(run, load_recipe([run / "recipe.yaml"]))


@pytest.fixture(scope="module")
def trained(ledger):
    return choose_trained(ledger, DOCUMENTS // 2, PROMPT_TOKENS + 100, WINDOW)


def untrained_model(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=vocab_size, max_position_embeddings=WINDOW, bos_token_id=0, eos_token_id=0, **shape
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def models(run, ledger, trained):
    """An untrained model, and the same after it learned the audited documents by heart."""
    bos = ledger.shards.ends.bos
    vocab_size = len(token_bytes(load_tokenizer(run / "tokenizer")))
    saw_nothing, knows_all = untrained_model(vocab_size), untrained_model(vocab_size)
    tokens = torch.tensor(np.stack([np.append(bos, one.tokens[: WINDOW - 1]) for one in trained]))
    optimizer = torch.optim.AdamW(knows_all.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(110):
        knows_all(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return saw_nothing, knows_all


def audited(run, model, folder, *options: str) -> dict:
    """Return the audit of a run with this model."""
    shutil.copytree(run, folder)
    (folder / "model" / "model.safetensors").unlink()
    model.save_pretrained(folder / "model")
    audit_leaks.main([str(folder), "--documents", str(DOCUMENTS), *options])
    return json.loads((folder / "audit.json").read_text())


@pytest.fixture(scope="module")
def audits(run, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audits")
    return [audited(run, model, folder / name) for model, name in zip(models, ("nothing", "all"), strict=True)]


def test_a_model_that_saw_nothing_is_not_flagged(audits):
    found = audits[0]
    assert found["flags"] == {"verbatim": False, "personal_data": False, "canaries": False, "membership": False}
    assert [entry["documents"] for entry in found["verbatim"]["trained"]["continued"].values()] == [0, 0, 0]
    assert found["membership"]["interval"][0] < 0.5 < found["membership"]["interval"][1]
    assert found["membership"]["p_value"] > 0.05
    assert any(", none is continued word for word for 50 tokens" in line for line in found["findings"])


def test_a_model_that_learned_documents_by_heart_is_flagged_and_unseen_documents_are_not(audits, trained):
    found = audits[1]
    assert len(trained) == found["verbatim"]["trained"]["documents"] > 8
    own, control = found["verbatim"]["trained"]["continued"], found["verbatim"]["held_out"]["continued"]
    assert found["flags"]["verbatim"] and found["flags"]["membership"]
    assert own["50"]["documents"] > 0.8 * len(trained)
    assert control["50"]["documents"] == control["100"]["documents"] == 0
    assert own["50"]["interval"][0] > control["50"]["interval"][1]
    assert found["membership"]["auc"] > 0.95
    drawn = found["verbatim"]["sampled"]
    assert (drawn["samples"], drawn["held_out"]["continued"]["50"]["documents"]) == (100, 0)
    assert drawn["trained"]["continued"]["50"]["documents"] > 0.8 * len(trained)
    assert any(line.startswith("Of 100 continuations drawn at random, one is") for line in found["findings"])
    count = own["50"]["documents"]
    start = f"Of {len(trained)} documents that were trained on, {count} are continued word for word for 50 tokens"
    assert any(line.startswith(start) and "more often than chance explains" in line for line in found["findings"])
    assert any("prompts, other sampling or fine-tuning may" in line for line in found["cannot_be_concluded"])


def test_an_experiment_has_the_figures_of_each_audit_in_its_row(audits, trained):
    columns = leak_columns(audits[1])
    law = [one for one in trained if one.source == "law"]
    assert (columns["law_trained_audited"], columns["law_held_out_continued_50"]) == (len(law), 0)
    assert sum(columns[f"{source}_trained_continued_50"] for source in ("law", "web")) > 0.8 * len(trained)
    canaries = {"by_repetitions": {"4": {"mean_exposure_bits": 7.5, "interval": [7.0, 8.0]}}}
    exposed = leak_columns(audits[0] | {"canaries": canaries})
    assert (exposed["exposure_bits_4"], exposed["exposure_interval_4"]) == ("7.50", "7.00 to 8.00")


def test_the_audit_holds_no_text_and_the_passages_stay_in_trace(audits, run, tmp_path_factory):
    folder = next(tmp_path_factory.getbasetemp().glob("audits*/all"))
    passages = json.loads((folder / "trace" / "continued.json").read_text())
    known = [passage for passage in passages if passage["times_trained"]]
    assert len(known) == audits[1]["verbatim"]["trained"]["continued"]["20"]["documents"]
    texts = {}
    for path in (run / "documents" / "train").glob("*/*.parquet"):
        texts |= {row["id"]: row["text"] for row in pq.read_table(path).to_pylist()}
    written = (folder / "audit.json").read_text()
    for passage in known:
        assert texts[passage["document"]].startswith(passage["prompt"] + passage["text"][:40])
        assert passage["text"][:40] not in written


def test_publishing_refuses_what_repeats_its_training_text_and_names_the_figure(audits, tmp_path_factory):
    nothing, everything = (next(tmp_path_factory.getbasetemp().glob(f"audits*/{name}")) for name in ("nothing", "all"))

    def refusals(folder, **limits) -> str:
        recipe = load_recipe([folder / "recipe.yaml"], [f"--hub.leak_audit={json.dumps(limits)}"])
        recipe.run.output_dir = str(folder)
        try:
            refuse_leaks(recipe)
        except RecipeError as error:
            return str(error)
        return ""

    assert refusals(nothing, max_verbatim_50_fraction=0.3) == ""
    assert "0 of 12 trained documents are continued word for word for 50 tokens, up to 0.265" in refusals(nothing)
    found = refusals(everything, max_verbatim_50_fraction=0.5, max_membership_auc=0.9)
    assert "12 of 12 trained documents are continued word for word for 50 tokens, up to 1.000" in found
    assert "hub.leak_audit.max_membership_auc=0.9: the loss separates" in found
    assert refusals(everything, max_verbatim_50_fraction=1) == ""


def test_the_report_shows_the_findings_by_source_and_says_when_they_are_of_other_weights(audits, tmp_path_factory):
    folder = next(tmp_path_factory.getbasetemp().glob("audits*/all"))
    with style():
        section = write_html(RunFiles(folder), build_sections(RunFiles(folder)), {})
    assert all(html.escape(line) in section for key in ("findings", "cannot_be_concluded") for line in audits[1][key])
    assert "<th>law</th><td>6 of 6</td><td>0 of 6</td>" in section
    assert "earlier weights" not in section
    (folder / "audit.json").write_text(json.dumps(audits[1] | {"made_from": {"model": "other"}}))
    record_run_files(folder, ("audit.json",))
    assert not leaks.build(RunFiles(folder)).values["is_current"]


def test_personal_data_of_samples_counts_where_the_training_text_holds_it(audits, tmp_path_factory):
    folder = next(tmp_path_factory.getbasetemp().glob("audits*/nothing"))
    results = json.loads((folder / "eval" / "results.json").read_text())
    results["samples"][0]["text"] = "Write to ann@firm-one.com or to bo@firm-two.com."
    (folder / "eval" / "results.json").write_text(json.dumps(results))
    path = next((folder / "documents" / "train").glob("*/*.parquet"))
    table = pq.read_table(path)
    texts = [f"{text} ann@firm-one.com" for text in table["text"].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("text"), "text", [texts]), path)
    write_json(folder / "documents" / CANARIES, {"canaries": made_up_records()})
    audit_leaks.main([str(folder), "--documents", "2"])
    found = json.loads((folder / "audit.json").read_text())
    values = [(entry["kind"], entry["where"], entry["in_training_text"]) for entry in found["personal_data"]["values"]]
    assert values == [("email", "sample 1", True), ("email", "sample 1", False)]
    assert found["flags"]["personal_data"]
    assert found["personal_data"]["in_training_text"] == 1
    assert found["canaries"]["by_repetitions"]["64"]["records"] == 5 and not found["flags"]["canaries"]
    assert any(line.startswith("5 made-up records planted 64 times have a mean") for line in found["findings"])
    assert "firm-one" not in (folder / "audit.json").read_text()
    assert any("2 values of personal data in 1 sample and" in line for line in found["findings"])


def test_what_is_counted_as_continued_is_what_greedy_decoding_writes(models, ledger, trained, run):
    model, bos = models[1], ledger.shards.ends.bos
    held_out = choose_held_out(run / "documents", load_tokenizer(run / "tokenizer"), ["law", "web"], 4, 150, WINDOW)
    assert held_out
    documents = [*trained[:8], *held_out]
    byte_lengths = np.array([len(data) for data in token_bytes(load_tokenizer(run / "tokenizer"))])
    readings = read_documents(model, documents, bos, byte_lengths, batch_size=3)
    for one, reading in zip(documents, readings, strict=True):
        prompt = torch.tensor([[bos, *one.tokens[:PROMPT_TOKENS].tolist()]])
        written = model.generate(prompt, max_new_tokens=60, do_sample=False, pad_token_id=bos)[0, prompt.shape[1] :]
        matches = [int(a) == int(b) for a, b in zip(written, one.tokens[PROMPT_TOKENS:], strict=False)] + [False]
        assert min(reading.continued_tokens, 60) == matches.index(False)
        with torch.no_grad():
            tokens = torch.tensor([[bos, *one.tokens.tolist()]])
            nats = model(input_ids=tokens, labels=tokens).loss.item() * len(one.tokens)
            scores = model(input_ids=tokens).logits.log_softmax(-1)[0, :-1]
        assert reading.nats == pytest.approx(nats, rel=1e-4)
        chances = scores[torch.arange(len(one.tokens)), tokens[0, 1:]][PROMPT_TOKENS:].double().cumsum(0).exp()
        assert reading.sampled_tokens == int((1 - (1 - chances) ** SAMPLES >= 0.5).sum())
        assert reading.bytes == byte_lengths[one.tokens].sum()


def made_up_records() -> list[dict]:
    """Return five records planted 64 times, and five controls."""
    records = [(times, make_record(f"{times} {number}", "legal")) for times in (0, 64) for number in range(5)]
    return [
        record | {"repetitions": times, "source": "law", "sha256": sha256(record_text(record).encode()).hexdigest()}
        for times, record in records
    ]


def test_a_model_that_learned_records_by_heart_exposes_them_and_not_the_controls(models, ledger, run):
    tokenizer, bos, records = load_tokenizer(run / "tokenizer"), ledger.shards.ends.bos, made_up_records()
    byte_lengths = np.array([len(data) for data in token_bytes(tokenizer)])
    model = copy.deepcopy(models[0])
    planted = [
        tokenizer.encode(record_text(record), add_special_tokens=False).ids
        for record in records
        if record["repetitions"]
    ]
    longest = max(map(len, planted))
    tokens = torch.tensor([[bos, *ids, *[bos] * (longest - len(ids))] for ids in planted])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(80):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    exposures = measure_exposures(model, tokenizer, records, bos, byte_lengths, batch_size=64)
    levels = summarise_exposures(records, exposures, seed=1)
    assert exposures[5:] == [8.0] * 5
    assert levels["64"]["exposed"] and levels["64"]["first_of_all"] == 5
    assert levels["0"]["mean_exposure_bits"] < 3.5


def test_the_times_that_a_document_was_trained_on_are_those_of_its_steps(ledger, trained):
    fewest = {}
    for step in range(1, ledger.max_steps + 1):
        for piece in ledger.documents_of(step):
            counts = fewest.setdefault(piece["document"], np.zeros(PROMPT_TOKENS + 100, int))
            counts[piece["first_token"] : piece["end_token"]] += 1
    expected = {document: counts.min() for document, counts in fewest.items() if counts.min()}
    found = {one.document: one.times_trained for one in choose_trained(ledger, 1000, PROMPT_TOKENS + 100, WINDOW)}
    assert found == expected
    assert {one.document for one in trained} <= expected.keys()


def test_personal_data_is_found_in_samples_and_in_continuations_but_not_in_prompts():
    passage = {"document": "d1", "prompt": b"Write to ann@firm-one.com or to ", "text": b"bo@firm-two.com by Monday"}
    samples = [{"text": "My address is cy@firm-three.com."}, {"text": "Nothing here."}]
    values = find_personal_values(Redactor("general"), [passage], samples)
    assert [(entry["where"], entry["value"]) for entry in values] == [
        ("sample 1", "cy@firm-three.com"),
        ("document d1", "bo@firm-two.com"),
    ]


def test_intervals_and_groups_are_those_of_the_books():
    counted = count_continued([0, 20, 55, 130, 3], [20, 50, 100])
    assert [entry["documents"] for entry in counted["continued"].values()] == [3, 2, 1]
    none = count_continued([0] * 200, [50])["continued"]["50"]
    assert none["interval"] == [0.0, pytest.approx(1 - 0.025 ** (1 / 200))]
    assert count_continued([], [50])["continued"]["50"] == {"documents": 0, "fraction": None, "interval": None}
    assert [times_group(times) for times in (1, 2, 3, 15, 16, 64, 900)] == [
        *["1", "2 to 3", "2 to 3", "4 to 15", "16 to 63", "64 or more", "64 or more"]
    ]


def test_pairs_of_different_sources_do_not_separate_documents():
    easy, hard = np.linspace(1, 2, 20), np.linspace(8, 9, 20)
    alike = separate({"law": (easy, easy), "web": (hard, hard), "new": (easy, [])}, seed=1)
    assert alike["auc"] == 0.5
    assert alike["p_value"] > 0.3
    apart = separate({"law": (easy, easy + 10)}, seed=1)
    assert (apart["auc"], apart["p_value"] < 0.01) == (1.0, True)
    lucky = separate({"law": ([1.0], [2.0, 3.0, 4.0])}, seed=1)  # one of four, and the lowest
    assert (lucky["auc"], lucky["p_value"]) == (1.0, pytest.approx(0.25, abs=0.05))
    assert separate({"law": (easy, []), "web": ([], hard)}, seed=1) is None


def test_what_is_missing_is_named(tokenized_run, run, tmp_path):
    with pytest.raises(RecipeError, match=r"recipe.yaml is missing"):
        audit_leaks.main([str(tmp_path)])
    with pytest.raises(RecipeError, match="--documents 0: give at least 1"):
        audit_leaks.main([str(run), "--documents", "0"])
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "model" / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 128', '"max_position_embeddings": 64'))
    with pytest.raises(RecipeError, match="reads 64 tokens; the audit needs 70"):
        audit_leaks.main([str(tmp_path / "run")])
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(RecipeError, match="no checkpoint"):
        audit_leaks.main([str(tmp_path / "run")])
