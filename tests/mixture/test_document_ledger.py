# SPDX-License-Identifier: Apache-2.0
"""The ledger answers from either side, and its answers are what training really read."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_run import RECIPES, tiny_settings
from token_files import open_shards, write_tokens
from transformers import AutoTokenizer

import document_ledger
import pretrain
from corpus.document_files import in_form_of
from corpus.text_normalisation import in_document_form
from document_ledger import open_ledger
from mixture.permutation import permute, unpermute
from mixture.phases import make_mixture
from mixture.shards import DOCUMENT_RECORD
from recipe_config import RecipeError
from recipe_loading import load_recipe


@pytest.fixture(scope="module")
def run(tokenized_run, tmp_path_factory):
    run = tokenized_run.copy(tmp_path_factory.mktemp("ledger") / "run")
    longer = ["--training.max_tokens=76_800", "--training.eval_steps=300", "--training.save_steps=148"]
    pretrain.main(run.argv(*longer))  # 300 steps: each source more than once round
    return run


def test_the_documents_of_a_step_are_the_text_it_was_trained_on(run):
    ledger = open_ledger(run.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir / "tokenizer")
    rows = [
        row for part in ("law", "web") for row in pq.read_table(run.output_dir / "documents/train" / part).to_pylist()
    ]
    texts = {row["id"]: row["text"] for row in rows}
    for step in (1, 7, 300):
        read = []
        for sequence in range(ledger.sequences_per_step):
            labels = ledger.mixture.window((step - 1) * ledger.sequences_per_step + sequence)[1:]
            read += labels.tolist()
        said = []
        for piece in ledger.documents_of(step):
            tokens = [*tokenizer(texts[piece["document"]]).input_ids, 0]
            said += tokens[piece["first_token"] : piece["end_token"]]
        assert said == read


def test_the_steps_of_a_document_are_those_that_name_it(run):
    ledger = open_ledger(run.output_dir)
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
    ledger = open_ledger(run.output_dir)
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
    said = capsys.readouterr().out
    assert pieces[0]["document"] in said and "skipped" not in said
    document_ledger.main([str(run.output_dir), "--document", pieces[0]["document"]])
    title, *_ = capsys.readouterr().out.splitlines()
    assert title.startswith(pieces[0]["document"])
    for shown in (said, title):
        path, row = pieces[0]["places"][0]
        assert f"{path}:{row}  " in shown and pieces[0]["first_words"] in shown
    with pytest.raises(RecipeError, match="--step 301: the run has steps 1 to 300"):
        document_ledger.main([str(run.output_dir), "--step", "301"])


def test_a_passage_finds_its_documents_in_every_split_whatever_its_case_and_line_breaks(run, capsys):
    rows = {path: pq.read_table(path).to_pylist() for path in (run.output_dir / "documents").glob("*/law/*.parquet")}
    for path, (row, *_) in rows.items():
        passage = row["text"][40:160].replace(" ", "\n ").upper()
        document_ledger.main([str(run.output_dir), "--passage", passage, "--json"])
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        [entry] = [entry for entry in found if entry["document"] == row["id"]]
        assert (entry["source"], entry["split"]) == ("law", path.parent.parent.name)
        [[file, number]] = entry["places"]
        line = Path(file).read_text().splitlines()[number - 1]
        assert entry["first_words"] == " ".join(json.loads(line)["text"].split())[:60]
    document_ledger.main([str(run.output_dir), "--passage", "no such words"])
    assert capsys.readouterr().out == "no document holds it\n"
    with pytest.raises(RecipeError, match="--passage: empty"):
        document_ledger.main([str(run.output_dir), "--passage", " "])


def test_a_passage_is_found_in_whatever_form_it_is_given(run, capsys):
    (row, *_) = pq.read_table(run.output_dir / "documents" / "train" / "law").to_pylist()
    words = row["text"][40:160].split(" ")
    passage = "\ufeff" + "\u200b \u00ad".join(words[:4]) + "\u00a0" + "\r\n".join(words[4:]).replace("e", "e\u00ad")
    document_ledger.main([str(run.output_dir), "--passage", passage, "--json"])
    assert row["id"] in {json.loads(line)["document"] for line in capsys.readouterr().out.splitlines()}
    assert in_form_of(run.output_dir / "documents", "cafe\u0301") == "caf\u00e9"
    assert in_document_form("cafe\u0301\r\n1", normalised=False) == "cafe\u0301\n1"
    with pytest.raises(RecipeError, match="--passage: empty"):
        document_ledger.main([str(run.output_dir), "--passage", "\u00ad"])


def test_a_folder_that_is_no_run_is_refused_and_not_said_to_hold_no_such_passage(run, tmp_path):
    unfinished = run.copy(tmp_path / "unfinished").output_dir
    (unfinished / "documents" / "stage.json").unlink()
    for folder in (tmp_path / "mistyped", unfinished):
        with pytest.raises(RecipeError, match=f"{folder}/documents is not the documents/ folder of a finished run"):
            document_ledger.main([str(folder), "--passage", "the court"])


def test_a_run_that_has_not_started_has_no_ledger(tokenized_run):
    with pytest.raises(RecipeError, match="no checkpoint yet"):
        open_ledger(tokenized_run.output_dir)


@pytest.mark.parametrize("size", [1, 2, 5, 63, 1000])
def test_a_permutation_can_be_undone(size):
    key = (3, 1, 4)
    assert [unpermute(permute(index, size, key), size, key) for index in range(size)] == list(np.arange(size))


def test_what_a_recipe_skips_from_now_on_is_said_to_be_skipped(run, tmp_path, capsys):
    later = run.copy(tmp_path / "run")
    document = next(open_ledger(later.output_dir).documents_of(250))["document"]
    before = list(open_ledger(later.output_dir).steps_of(document))
    recipe = later.output_dir / "recipe.yaml"
    skipping = ["--data.skip.steps=[[298, 400]]", f"--data.skip.documents=[{document}]"]
    recipe.write_text(load_recipe([recipe], skipping).dump_yaml())
    shutil.rmtree(later.output_dir / "checkpoints" / "step_00000300")  # the run has got to step 296
    ledger = open_ledger(later.output_dir)
    assert all(piece["skipped"] for piece in ledger.documents_of(299))
    assert not any(piece["skipped"] for piece in ledger.documents_of(296))
    after = list(ledger.steps_of(document))
    assert after == [visit | {"skipped": visit["step"] > 296} for visit in before]
    document_ledger.main([str(later.output_dir), "--step", "299"])
    assert all(", skipped  " in line for line in capsys.readouterr().out.splitlines()[1:])


# --- as large as it gets

SEQUENCES_PER_STEP, SEQUENCE_LENGTH, DOCUMENT_TOKENS = 4, 2048, 1000

# Opens the run, reads what training reads at a step in its middle, and asks the ledger for that step.
PROBE = """
import json, sys, time, tracemalloc
from pathlib import Path
import numpy as np
from document_ledger import open_ledger
from mixture.batches import MicroBatches
from mixture.skips import SkippedDocuments

run, step = Path(sys.argv[1]), int(sys.argv[2])
def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

before = resident_mib()
tracemalloc.start()
started = time.perf_counter()
ledger = open_ledger(run)
opened = time.perf_counter()
skipped = SkippedDocuments(ledger.shards, [])
batch = MicroBatches(ledger.mixture, skipped, np.ones(1000), ledger.sequences_per_step, 0, 1)[step - 1]
read = time.perf_counter()
pieces = list(ledger.documents_of(step))
answered = time.perf_counter()
print(json.dumps({
    "open_seconds": opened - started, "read_seconds": read - opened, "ledger_seconds": answered - read,
    "traced_mib": tracemalloc.get_traced_memory()[1] / 2**20,
    "grown_mib": resident_mib() - before,
    "labels": batch["labels"].tolist(), "pieces": pieces,
}))
"""


def document_id(source: int, shard: int, number: int) -> str:
    return f"{source:04d}{shard:04d}{number:024d}"


def write_around(shards, location) -> None:
    """Write into sparse files what reading one sequence and asking for its documents touches: the tokens, the records
    of its documents, and those that the search for them looks at."""
    count = shards.shards[location.source][location.shard].size // DOCUMENT_TOKENS
    first, last = (location.start + 1) // DOCUMENT_TOKENS, (location.start + SEQUENCE_LENGTH) // DOCUMENT_TOKENS + 1
    numbers, low, high = set(range(max(0, first - 2), min(count, last + 2))), 0, count
    while low < high:
        middle = (low + high) // 2
        numbers.add(middle)
        low, high = (middle + 1, high) if (middle + 1) * DOCUMENT_TOKENS < location.start + 1 else (low, middle)
    file = shards.files[location.source][location.shard]
    with file.with_suffix(".index").open("r+b") as index, file.open("r+b") as tokens:
        for number in numbers:
            name = document_id(location.source, location.shard, number).encode()
            index.seek(number * DOCUMENT_RECORD.itemsize)
            index.write(np.array([((number + 1) * DOCUMENT_TOKENS, 4000, name)], dtype=DOCUMENT_RECORD).tobytes())
        tokens.seek(2 * location.start)
        places = location.start + np.arange(SEQUENCE_LENGTH + 1)
        tokens.write(np.where(places % DOCUMENT_TOKENS, 1 + places % 7, 0).astype("<u2").tobytes())


def write_large_run(run, shard_tokens: int, step: int) -> None:
    """Write a run folder of ten sparse shards, with content only where `step` reads."""
    sources = {"law": [shard_tokens] * 6, "web": [shard_tokens] * 4}
    write_tokens(run / "tokens", sources, documents_per_shard=shard_tokens // DOCUMENT_TOKENS)
    shares = {"law": 0.51, "web": 0.49}
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tiny_settings(run, run))
    (run / "recipe.yaml").write_text(recipe.dump_yaml())
    phases = [{"after_step": 0, "shares": shares}, {"after_step": step - 1, "shares": {"law": 0.9, "web": 0.1}}]
    (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    state = {
        "step": 1,
        "max_steps": 2 * step,
        "sequence_length": SEQUENCE_LENGTH,
        "tokens_per_step": SEQUENCES_PER_STEP * SEQUENCE_LENGTH,
        "bytes_seen": shares,
        "phases": phases,
        "rollbacks": [],
        "skips": [{"after_step": 0, "steps": [], "documents": []}],
    }
    (run / "checkpoints" / "step_00000001" / "state.json").write_text(json.dumps(state))
    shards = open_shards(run / "tokens", SEQUENCE_LENGTH)
    mixture = make_mixture(shards, phases, SEQUENCES_PER_STEP, recipe.run.seed)
    for index in range((step - 1) * SEQUENCES_PER_STEP, step * SEQUENCES_PER_STEP):
        write_around(shards, mixture.locate(index))


def probe(run, step: int) -> dict:
    command = [sys.executable, "-c", PROBE, str(run), str(step)]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(RECIPES)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_ten_trillion_tokens_cost_the_time_and_memory_of_a_small_corpus(tmp_path):
    found = {}
    for name, total in (("small", 10**7), ("large", 10**13)):
        while True:
            try:
                step = total // (2 * SEQUENCES_PER_STEP * SEQUENCE_LENGTH)
                write_large_run(tmp_path / name, total // 10, step)
                break
            except OSError:  # the file system does not take files of this size
                shutil.rmtree(tmp_path / name)
                total //= 10
        found[name] = probe(tmp_path / name, step)
        figures = ", ".join(f"{key} {value:.3f}" for key, value in found[name].items() if isinstance(value, float))
        sys.stdout.write(f"{total:.0e} tokens: {figures}\n")
    if total < 10**13:
        warnings.warn(f"the file system takes no sparse files for more than {total:.0e} tokens", stacklevel=1)
    small, large = found["small"], found["large"]
    for answer in (small, large):
        labels = {}
        for piece in answer["pieces"]:
            source, shard, number = (int(piece["document"][part]) for part in (slice(4), slice(4, 8), slice(8, 32)))
            start = 1 + number * DOCUMENT_TOKENS
            places = np.arange(start + piece["first_token"], start + piece["end_token"])
            said = np.where(places % DOCUMENT_TOKENS, 1 + places % 7, 0).tolist()
            labels.setdefault(piece["sequence"], []).extend(said)
            assert piece["source"] == ("law", "web")[source] and shard < 6
        assert list(labels.values()) == answer["labels"], "the ledger's documents are what is read"
    assert large["traced_mib"] < small["traced_mib"] + 1 and large["grown_mib"] < small["grown_mib"] + 8
    for part in ("open_seconds", "read_seconds", "ledger_seconds"):
        assert large[part] < 10 * small[part] + 0.5, part
