# SPDX-License-Identifier: Apache-2.0
"""The tokenizer, the token shards and the mixture: no byte, token or share is lost on the way to the model."""

import json
import random
import shutil
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from invented_texts import count_bytes, sample_by_hand
from tiny_run import make_text
from token_files import open_shards, write_tokens
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import tokenize_corpus
import train_tokenizer
from atomic_files import read_record
from mixture.batches import MicroBatches, document_positions, read_batches
from mixture.labels import IGNORED_LABEL
from mixture.order import PATTERN_LENGTH, TokenMixture, interleave
from mixture.permutation import permute
from mixture.shard_writer import load_tokenizer, token_dtype, write_shard
from mixture.shards import DOCUMENT_RECORD, Location, TokenShards, token_byte_lengths
from mixture.skips import SkippedDocuments
from mixture.validation_text import ValidationText
from recipe_config import Goldfish, RecipeError
from recipe_loading import load_recipe
from stages import tokenizer_settings
from vocabulary.bulk_encoding import encode, split_at_lines
from vocabulary.tokenizer_training import read_texts


SHARES = {"law": 0.6, "web": 0.4}


@pytest.fixture
def tokens(tokenized_run):
    return tokenized_run.output_dir / "tokens"


@pytest.fixture
def manifest(tokens):
    return json.loads((tokens / "manifest.json").read_text())


def mixture_of(tokens, seed=0, sequence_length=32, phases=None) -> TokenMixture:
    return TokenMixture(TokenShards(tokens, list(SHARES), sequence_length), phases or {0: SHARES}, seed)


# --- the tokenizer


def test_every_string_is_encoded_and_decodes_to_itself(tokenized_run):
    tokenizer = AutoTokenizer.from_pretrained(tokenized_run.output_dir / "tokenizer")
    choose = random.Random(0)
    unicode = [chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000] + ["\U0001f468\u200d\U0001f469"]
    strings = ["".join(choose.choices(unicode, k=20)) for _ in range(300)]
    strings += ["", " ", "\n\n \t", "\r\n", "1 tab po qid pc & hs", "\ufeff", "\u0000", "e\u0301", "\u00e9"]
    for string in strings:
        tokens = tokenizer(string).input_ids
        assert tokenizer.decode(tokens) == string, ascii(string)


def test_digits_stand_alone_and_nothing_is_added(tokenized_run):
    tokenizer = AutoTokenizer.from_pretrained(tokenized_run.output_dir / "tokenizer")
    assert tokenizer.tokenize("1848")[-4:] == ["1", "8", "4", "8"]
    assert tokenizer.all_special_tokens == ["<|endoftext|>"]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert 0 not in tokenizer("The court denies the appeal.").input_ids


def test_a_tokenizer_that_changes_text_is_refused(tiny_run, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_run.output_dir / "tokenizer", base)
    change_tokenizer(base, {"normalizer": {"type": "Lowercase"}})
    message = "its tokenizer, on law: the tokenizer changes the text: from byte 0 on it encodes 'The .* as 'the "
    with pytest.raises(RecipeError, match=message):
        train_tokenizer.main(tiny_run.argv(f"--tokenizer.from_pretrained={base}", "--overwrite"))


def test_a_tokenizer_of_the_hub_is_read_at_its_commit(tiny_run, monkeypatch):
    """And another commit makes the tokenizer out of date."""
    asked = []

    def refuse(name, **options):
        asked.append((name, options["revision"]))
        raise OSError("no network")

    monkeypatch.setattr(train_tokenizer.AutoTokenizer, "from_pretrained", refuse)
    pinned = tiny_run.argv("--tokenizer.from_pretrained=org/base", f"--tokenizer.revision={'a' * 40}", "--overwrite")
    with pytest.raises(RecipeError, match="org/base"):
        train_tokenizer.main(pinned)
    assert asked == [("org/base", "a" * 40)]
    recipe = load_recipe([pinned[1]], pinned[2:-1])
    assert tokenizer_settings(recipe)["base"] == {"from_pretrained": "org/base", "revision": "a" * 40}


def test_a_document_that_the_tokenizer_would_change_is_refused_by_name(tokenized_run, tmp_path):
    folder, document = tmp_path / "tokenizer", {"id": ["0" * 32, "1" * 32], "text": ["caf\u00e9", "cafe\u0301"]}
    shutil.copytree(tokenized_run.output_dir / "tokenizer", folder)
    change_tokenizer(folder, {"normalizer": {"type": "NFC"}})
    pq.write_table(pa.table(document), tmp_path / "a.parquet")
    files = [(tmp_path / "a.parquet", tmp_path / "a.ds")]
    with pytest.raises(RecipeError, match=f"document {'1' * 32}: the tokenizer changes the text: from byte 3 on"):
        write_shard(None, 0, 1, files=files, tokenizer_folder=folder, notes=tmp_path / "notes")


def test_documents_are_tokenized_whole_by_a_tokenizer_that_truncates(tokenized_run, tmp_path):
    tokenizer = Tokenizer.from_file(str(tokenized_run.output_dir / "tokenizer" / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(encode(load_tokenizer(tmp_path), make_text(0))) > 8


def change_tokenizer(folder, changes: dict) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_same_text_gives_the_same_tokenizer(tokenized_run, tmp_path):
    again = tokenized_run.copy(tmp_path / "again")
    train_tokenizer.main(again.argv("--overwrite"))
    shutil.rmtree(again.output_dir / "tokenizer")
    train_tokenizer.main(again.argv())
    folders = [run.output_dir / "tokenizer" for run in (tokenized_run, again)]
    files = [read_record(folder)["files"] for folder in folders]
    assert all(named.pop("speed.json") for named in files)
    assert files[0] == files[1]


def test_the_report_measures_bytes_per_token_on_held_out_text_by_hand(tokenized_run):
    report = json.loads((tokenized_run.output_dir / "tokenizer" / "report.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tokenized_run.output_dir / "tokenizer")
    held_out = pq.read_table(tokenized_run.output_dir / "documents" / "validation" / "law")["text"].to_pylist()
    num_tokens = sum(len(tokenizer(text).input_ids) for text in held_out)
    expected = sum(len(text.encode()) for text in held_out) / num_tokens
    assert report["bytes_per_token"]["domain tokenizer"]["law"] == pytest.approx(expected)
    assert report["bytes_per_token"]["general tokenizer"]["web"] > 1
    assert "".join(report["terms"]["indemnify"]["domain tokenizer"]) == " indemnify"


def test_a_source_with_too_little_text_shrinks_the_sample_to_its_shares_and_the_report_has_what_was_read(tiny_run):
    train_tokenizer.main(tiny_run.argv("--tokenizer.max_train_bytes=100_000", "--overwrite"))
    report = json.loads((tiny_run.output_dir / "tokenizer" / "report.json").read_text())
    ours, baseline = (report["samples"][f"{name} tokenizer"] for name in ("domain", "general"))
    documents = tiny_run.output_dir / "documents"
    texts = {source: list(read_texts(documents, "train", source)) for source in ("law", "web")}
    whole = [source for source in texts if report["sample_bytes"][source] == report["train_bytes"][source]]
    assert len(whole) == 1 and sum(report["sample_bytes"].values()) < 100_000, report
    assert report["sample_bytes"]["law"] / sum(report["sample_bytes"].values()) == pytest.approx(0.6, abs=0.01)
    for source, own in texts.items():
        drawn = sample_by_hand(own, report["sample_bytes"][source])
        counted = {"documents": len(drawn), "bytes": count_bytes(drawn)}  # each of them is one piece
        assert ours["sources"][source] == counted and counted["bytes"] == report["sample_bytes"][source]
    assert ours["domains"] == {"legal": ours["sources"]["law"], "general": ours["sources"]["web"]}
    assert baseline["sources"] == {"web": {"documents": len(texts["web"]), "bytes": count_bytes(texts["web"])}}
    assert baseline["domains"] == {"general": baseline["sources"]["web"]}


def test_a_vocabulary_that_the_text_cannot_fill_is_refused_padded_or_shrunk_with_a_note(tiny_run, capsys):
    too_large = ["--tokenizer.vocab_size=30_000", "--overwrite"]
    with pytest.raises(RecipeError, match=r"vocab_size=30000: the text yields only [\d,]+ tokens.*pad_vocabulary"):
        train_tokenizer.main(tiny_run.argv(*too_large))
    train_tokenizer.main(tiny_run.argv(*too_large, "--data.fit_to_corpus=true"))
    assert "bytes yield about" in capsys.readouterr().out
    report = json.loads((tiny_run.output_dir / "tokenizer" / "report.json").read_text())
    assert 257 <= report["vocab_size"] < 30_000
    train_tokenizer.main(tiny_run.argv("--tokenizer.pad_vocabulary=true", *too_large))
    assert "reserved tokens fill them up to 30,000" in capsys.readouterr().out
    report = json.loads((tiny_run.output_dir / "tokenizer" / "report.json").read_text())
    assert report["vocab_size"] == 30_000 and 29_000 < report["num_reserved_tokens"] < 30_000


def test_a_list_of_terms_and_other_tokenizers_are_measured_beside_it(tiny_run, tmp_path, capsys):
    (tmp_path / "terms.txt").write_text("# contracts\nindemnify\nlicensor\n")
    missing = ["--tokenizer.compare_with=['no/such/tokenizer.json']", "--overwrite"]
    with pytest.raises(RecipeError, match="no/such/tokenizer.json: no tokenizer can be read: "):
        train_tokenizer.main(tiny_run.argv(*missing))
    twice = [f"--tokenizer.compare_with=['{tmp_path}/other', '{tmp_path}/old/other']", "--overwrite"]
    with pytest.raises(RecipeError, match="two are named other; rename one"):
        train_tokenizer.main(tiny_run.argv(*twice))
    shutil.copytree(tiny_run.output_dir / "tokenizer", tmp_path / "other")
    given = [f"--tokenizer.terms_file={tmp_path}/terms.txt", f"--tokenizer.compare_with=['{tmp_path}/other']"]
    train_tokenizer.main(tiny_run.argv(*given, "--overwrite"))
    tokenizer = tiny_run.output_dir / "tokenizer"
    card = json.loads((tokenizer / "report.json").read_text())["card"]
    assert list(card["tokenizers"]) == ["domain tokenizer", "general tokenizer", "other"]
    assert str(tmp_path) not in (tokenizer / "report.json").read_text() + (tokenizer / "README.md").read_text()
    assert card["tokenizers"]["domain tokenizer"]["terms"]["legal"]["terms"] == 2
    assert "indemnify" in (tokenizer / "README.md").read_text()
    assert json.loads((tokenizer / "speed.json").read_text())["other"]["megabytes_per_second"] > 0
    tokenize_corpus.main(tiny_run.argv(*given))  # a measurement more makes no tokens out of date
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RecipeError, match=r"tokenizer.terms_file: .*/none.txt is missing"):
        train_tokenizer.main(tiny_run.argv(f"--tokenizer.terms_file={tmp_path}/none.txt", "--overwrite"))


def test_a_run_with_a_tokenizer_keeps_its_pre_tokenization_unless_the_recipe_names_another(tiny_run, capsys):
    record_file = tiny_run.output_dir / "tokenizer" / "stage.json"
    record = json.loads(record_file.read_text())
    record["settings"]["pretokenization"] = "gpt4"  # the default of runs made before
    record_file.write_text(json.dumps(record))
    train_tokenizer.main(tiny_run.argv())
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(RecipeError, match='pretokenization was "gpt4", is "qwen2"'):
        train_tokenizer.main(tiny_run.argv("--tokenizer.pretokenization=qwen2"))
    shutil.rmtree(tiny_run.output_dir / "tokenizer")
    train_tokenizer.main(tiny_run.argv())
    assert json.loads(record_file.read_text())["settings"]["pretokenization"] == "qwen2"


def test_unigram_by_split_and_merge_is_a_choice(tiny_run):
    chosen = [
        "--tokenizer.algorithm=unigram",
        "--tokenizer.pretokenization=multiword",
        "--tokenizer.chunk_bytes=20000",
    ]
    train_tokenizer.main(tiny_run.argv(*chosen, "--tokenizer.num_reserved_tokens=3", "--overwrite"))
    model = json.loads((tiny_run.output_dir / "tokenizer" / "tokenizer.json").read_text())["model"]
    assert model["type"] == "Unigram" and len(model["vocab"]) == 384
    assert model["vocab"][-1][0] == "<|reserved_2|>"
    assert not list(tiny_run.output_dir.glob(".chunks*"))


# --- the shards


def test_shards_hold_every_document_between_ends_of_text(tokenized_run, tokens, manifest):
    tokenizer = AutoTokenizer.from_pretrained(tokenized_run.output_dir / "tokenizer")
    for source in SHARES:
        for split in ("train", "validation"):
            folder = tokenized_run.output_dir / "documents" / split / source
            documents = {row["id"]: row["text"] for row in pq.read_table(folder).to_pylist()}
            for shard in manifest["sources"][source][split]["shards"]:
                stream = np.fromfile(tokens / shard["file"], dtype="<u2")
                index = np.fromfile((tokens / shard["file"]).with_suffix(".index"), dtype=DOCUMENT_RECORD)
                assert stream[0] == 0 and np.array_equal(np.flatnonzero(stream == 0)[1:], index["end"])
                start = 1
                for record in index:
                    text = documents.pop(record["id"].decode())
                    assert tokenizer.decode(stream[start : record["end"]].tolist()) == text
                    assert record["num_bytes"] == len(text.encode())
                    start = int(record["end"]) + 1
                assert start == len(stream) == shard["tokens"]
            assert not documents


def test_control_tokens_in_a_document_are_text(tokenized_run):
    tokenizer = load_tokenizer(tokenized_run.output_dir / "tokenizer")
    tokens = encode(tokenizer, "before <|endoftext|> after")
    assert 0 not in tokens and tokenizer.decode(tokens.tolist()) == "before <|endoftext|> after"


def test_a_long_document_is_encoded_piece_by_piece_at_line_ends(monkeypatch):
    monkeypatch.setattr("vocabulary.bulk_encoding.MAX_PIECE_CHARACTERS", 10)
    assert list(split_at_lines("ab\ncdefg\nhijklmnopqrstuv")) == ["ab\ncdefg\n", "hijklmnopq", "rstuv"]
    text = make_text(1)
    assert "".join(split_at_lines(text)) == text
    assert all(len(piece) <= 10 for piece in split_at_lines(text))


def test_the_type_of_a_token_holds_the_whole_vocabulary():
    assert [token_dtype(size).name for size in (257, 65_536, 65_537, 131_072)] == ["uint16"] * 2 + ["uint32"] * 2


def test_a_changed_tokenizer_makes_the_tokens_stale_by_name(tiny_run):
    train_tokenizer.main(tiny_run.argv("--tokenizer.vocab_size=320", "--overwrite"))
    with pytest.raises(RecipeError, match="tokens is out of date: the output of tokenizer changed"):
        tokenize_corpus.main(tiny_run.argv("--tokenizer.vocab_size=320"))
    with pytest.raises(RecipeError, match="vocab_size was 320, is 384; rerun: python recipes/train_tokenizer.py"):
        tokenize_corpus.main(tiny_run.argv("--overwrite"))


# --- the mixture


def test_each_token_is_a_label_once_in_each_time_round_but_for_the_stated_remainder(tokens, manifest):
    mixture = mixture_of(tokens, seed=3)
    shards = mixture.shards
    for source, name in enumerate(shards.names):
        labels = {number: [] for number in range(len(shards.shards[source]))}
        index = taken = 0
        while taken < shards.num_windows[source]:
            location = mixture.locate(index)
            index += 1
            if location.source == source:
                taken += 1
                labels[location.shard] += range(location.start + 1, location.start + 33)
        remainder = 0
        for number, shard in enumerate(manifest["sources"][name]["train"]["shards"]):
            windows = (shard["tokens"] - 1) // 32
            assert sorted(labels[number]) == list(range(1, windows * 32 + 1))
            assert shard["tokens"] - 1 - windows * 32 < 32
            remainder += shard["tokens"] - 1 - windows * 32
        assert shards.remainder_tokens[name] == remainder


def test_the_order_is_a_function_of_seed_and_index_alone_and_differs_each_time_round(tokens):
    mixture, same, other = (mixture_of(tokens, seed) for seed in (1, 1, 2))
    indices = list(range(400))
    backwards = {index: same.locate(index) for index in reversed(indices)}
    assert [mixture.locate(index) for index in indices] == [backwards[index] for index in indices]
    assert [mixture.locate(index) for index in indices] != [other.locate(index) for index in indices]
    law = [location for location in map(mixture.locate, range(20_000)) if location.source == 0]
    windows = mixture.shards.num_windows[0]
    rounds = [law[:windows], law[windows : 2 * windows]]
    assert rounds[0] != rounds[1] and set(rounds[0]) == set(rounds[1])


def test_shares_are_of_bytes_and_hold_at_every_thousand_sequences(tokens, manifest):
    mixture = mixture_of(tokens)
    trains = [manifest["sources"][name]["train"] for name in mixture.shards.names]
    bytes_per_sequence = np.array([train["bytes"] / train["tokens"] * 32 for train in trains])
    for sequences in (*range(1000, 10_001, 1000), 123_000, 10**12):
        num_bytes = mixture.counts(sequences) * bytes_per_sequence
        assert abs(num_bytes / num_bytes.sum() - [0.6, 0.4]).max() < 0.001, sequences


def test_counts_and_places_agree(tokens):
    mixture = mixture_of(tokens)
    sources = [mixture.locate(index).source for index in range(300)]
    for count in (0, 1, 17, 300):
        assert mixture.counts(count).tolist() == [sources[:count].count(0), sources[:count].count(1)]
    far = 10**15 + 7
    assert mixture.counts(far + 1).sum() == far + 1
    assert mixture.locate(far) == mixture.locate(far)


PHASES = {0: {"a": 0.5, "b": 0.5, "c": 0.0}, 700: {"a": 0.2, "b": 0.0, "c": 0.8}, 1100: {"a": 0.0, "b": 1.0, "c": 0.0}}


@pytest.fixture(scope="module")
def three_sources(tmp_path_factory):
    """Shards without content of three sources, of 100, 240 and 300 windows of 8 tokens."""
    folder = tmp_path_factory.mktemp("three") / "tokens"
    return open_shards(write_tokens(folder, {"a": [801], "b": [801, 1125], "c": [2401]}), 8)


def test_in_each_phase_a_source_goes_on_where_it_stopped(three_sources):
    mixture = TokenMixture(three_sources, PHASES, seed=4)
    located = [mixture.locate(index) for index in range(3000)]
    for source, windows in enumerate(three_sources.num_windows):
        own = [location for location in located if location.source == source]
        rounds = [own[start : start + windows] for start in range(0, len(own), windows)]
        assert all(len(set(taken)) == len(taken) for taken in rounds), "a window came twice in one epoch"
        assert len({tuple(taken) for taken in rounds}) == len(rounds)
    for count in (0, 1, 699, 700, 701, 1100, 1101, 3000):
        sources = [location.source for location in located[:count]]
        assert mixture.counts(count).tolist() == [sources.count(source) for source in range(3)]
    assert {location.source for location in located[1100:]} == {1}
    assert mixture.repetitions(1100) == {"a": 4.3, "b": 350 / 240, "c": 320 / 300}


def test_the_first_phase_does_not_depend_on_where_it_ends(three_sources):
    alone = TokenMixture(three_sources, {0: PHASES[0]}, seed=4)
    phased = TokenMixture(three_sources, PHASES, seed=4)
    assert [alone.locate(index) for index in range(700)] == [phased.locate(index) for index in range(700)]
    far = {0: PHASES[0], 10**12 + 7: PHASES[700]}
    assert TokenMixture(three_sources, far, seed=4).counts(10**12 + 10**6 + 7)[2] == 800_000


def test_a_sequence_is_found_where_it_is_located_in_any_phase(three_sources):
    for windows_per_sequence in ({}, {700: 5}, {700: 4, 1100: 4}):
        mixture = TokenMixture(three_sources, PHASES, 4, windows_per_sequence)
        indices: dict[tuple, list] = {}
        for index in range(3000):
            indices.setdefault(mixture.locate(index), []).append(index)
        assert len(indices) == 640, "every window of every source"
        for location, expected in indices.items():
            assert found_at(mixture, location, 3000) == expected
            assert found_at(mixture, location, 777) == [index for index in expected if index < 777]


def found_at(mixture: TokenMixture, location: Location, until: int) -> list[int]:
    """Return the windows that begin at a location, by way of its first label."""
    first = location.start + 1
    found = mixture.find(location.source, location.shard, first, first + 1, until)
    return sorted(index for index, start in found if start == location.start)


def test_repacked_text_is_cut_at_other_places_in_each_epoch_and_found_there(three_sources):
    repacked = TokenShards(three_sources.folder, three_sources.names, three_sources.sequence_length, repack=True)
    for windows_per_sequence in ({}, {700: 4, 1100: 4}):
        mixture = TokenMixture(repacked, PHASES, 4, windows_per_sequence)
        indices: dict[tuple, list] = {}
        for index in range(3000):
            indices.setdefault(mixture.locate(index), []).append(index)
        assert all(found_at(mixture, location, 3000) == expected for location, expected in indices.items())
        # All windows that have a label in a stretch are those that one by one have.
        for source, shard, start, end in ((0, 0, 1, 70), (1, 0, 333, 400), (2, 0, 500, 501)):
            some = {
                (index, at.start)
                for at, numbers in indices.items()
                for index in numbers
                if (at.source, at.shard) == (source, shard)
                and at.start + 1 < end
                and start < at.start + 1 + repacked.sequence_length
            }
            assert set(mixture.find(source, shard, start, end, 3000)) == some
    firsts = {location.start % repacked.sequence_length for location in indices if location.source == 1}
    assert len(firsts) > 5, "every epoch of a source begins elsewhere"
    assert [mixture.locate(index) for index in range(500)] == [
        TokenMixture(repacked, PHASES, 4).locate(index) for index in range(500)
    ]


def test_repacked_text_is_read_to_both_ends_of_each_shard_and_a_short_shard_too(tmp_path):
    lengths = [9, 16, 17, 41, 47]  # of shards; the first hold one sequence of 8 tokens and what comes after it
    folder = write_tokens(tmp_path / "tokens", {"a": lengths})
    mixture = TokenMixture(TokenShards(folder, ["a"], 8, repack=True), {0: {"a": 1.0}}, 4)
    labels = [set() for _ in lengths]
    for index in range(5_000):
        _, shard, start = mixture.locate(index)
        assert start + 8 < lengths[shard]
        labels[shard] |= set(range(start + 1, start + 9))
    assert labels == [set(range(1, length)) for length in lengths]


def test_a_phase_of_longer_sequences_reads_windows_that_stand_after_each_other(three_sources):
    plain = TokenMixture(three_sources, PHASES, seed=4)
    longer = TokenMixture(three_sources, PHASES, 4, {700: 4, 1100: 4})
    located = [longer.locate(index) for index in range(3000)]
    assert located[:700] == [plain.locate(index) for index in range(700)], "what was before it stays"
    assert [longer.windows_at(index) for index in (699, 700, 2999)] == [1, 4, 4]
    for first in range(700, 3000, 4):
        source, shard, start = located[first]
        assert located[first : first + 4] == [(source, shard, start + 8 * piece) for piece in range(4)]
    long_b = [location for location in located[1100::4] if location.source == 1]
    assert len(set(long_b[:60])) == 60 == sum([100 // 4, 140 // 4]), "each sequence once an epoch, over both shards"
    for count in (700, 703, 1100, 1101, 3000):
        sources = [location.source for location in located[:count]]
        assert longer.counts(count).tolist() == [sources.count(source) for source in range(3)]
    with pytest.raises(RecipeError, match="sequence_length=880: source a has no shard of so many tokens"):
        TokenMixture(three_sources, PHASES, 4, {700: 110})


@pytest.mark.parametrize(
    "shares",
    [
        [0.998, 0.002],
        [0.5127, 0.4873],
        [1 / 3, 1 / 3, 1 / 3],
        [0.002, 0.31, 0.12, 0.08, 0.488],
        [0.0, 0.002, 0.003, 0.295, 0.7],
        [0.4, 0.25, 0.15, 0.1, 0.06, 0.04],
    ],
)
def test_the_schedule_gives_each_share_at_every_thousand_sequences_of_each_phase(tmp_path, shares):
    names = [f"s{number}" for number in range(len(shares))]
    ratios = dict(zip(names, [4.42, 2.79, 3.6, 4.1, 3.1, 4.8], strict=False))
    shards = open_shards(write_tokens(tmp_path / "tokens", {name: [80_001] for name in names}, ratios), 8)
    asked = [dict(zip(names, part, strict=True)) for part in (shares, shares[::-1])]
    start = 12_340
    mixture = TokenMixture(shards, {0: asked[0], start: asked[1]}, seed=0)
    for first, last, phase in ((0, start, asked[0]), (start, start + 25_000, asked[1])):
        for sequences in (*range(1000, last - first, 1000), *([10**12] if first else [])):
            taken = (mixture.counts(first + sequences) - mixture.counts(first)) * shards.bytes_per_sequence
            assert abs(taken / taken.sum() - list(phase.values())).max() < 0.001, (first, sequences)
    whole = mixture.target_shares(2 * start)
    taken = mixture.counts(2 * start) * shards.bytes_per_sequence
    assert abs(taken / taken.sum() - list(whole.values())).max() < 0.001


def test_a_copy_for_another_process_maps_the_files_itself(three_sources):
    mixture = TokenMixture(three_sources, PHASES, seed=4)
    sent = ForkingPickler.dumps(three_sources)
    assert len(sent) < 1000
    copy = TokenMixture(ForkingPickler.loads(sent), PHASES, seed=4)
    assert [copy.locate(index) for index in range(100)] == [mixture.locate(index) for index in range(100)]


def test_workers_read_ahead_what_one_process_reads(three_sources):
    mixture = TokenMixture(three_sources, PHASES, seed=4)
    dataset = MicroBatches(mixture, SkippedDocuments(three_sources, []), np.ones(8), 2, 1, 3)
    steps = [1, 2, 117, 118, 500]  # 117 begins in the first phase and ends in the second
    alone, ahead = (list(read_batches(dataset, steps, 2, on_cpu)) for on_cpu in (True, False))
    assert len(alone) == len(ahead) == 10
    for k, (one, other) in enumerate(zip(alone, ahead, strict=True)):
        assert all(torch.equal(one[name], other[name]) for name in one)
        micro_step = 2 * (steps[k // 2] - 1) + k % 2
        sources = [mixture.locate((3 * micro_step + 1) * 2 + row).source for row in range(2)]
        assert one["seen"].tolist() == [[8 * sources.count(source)] * 2 for source in range(3)]


def test_a_micro_batch_has_as_many_tokens_in_a_phase_of_longer_sequences(three_sources):
    mixture = TokenMixture(three_sources, PHASES, 4, {700: 4})
    skipped = SkippedDocuments(three_sources, [])
    alone = MicroBatches(mixture, skipped, np.ones(8), 100, 0, 1)
    assert alone[6]["input_ids"].shape == (100, 8)
    assert alone[7]["input_ids"].shape == (25, 32)
    shared = [MicroBatches(mixture, skipped, np.ones(8), 20, process, 5) for process in range(5)]
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(torch.cat([part[7][name] for part in shared]), alone[7][name])
    assert alone[7]["seen"][:, 1].sum() == 800


@pytest.mark.parametrize("goldfish", [None, Goldfish(k=3, context=4)])
def test_every_tensor_of_a_micro_batch_is_contiguous_so_that_a_gpu_copies_it_as_it_lies(goldfish, three_sources):
    mixture = TokenMixture(three_sources, PHASES, 4, {700: 4})
    batches = MicroBatches(mixture, SkippedDocuments(three_sources, []), np.ones(8), 100, 0, 1, goldfish)
    for k in (6, 7):  # of short and of long sequences
        assert [name for name, tensor in batches[k].items() if not tensor.is_contiguous()] == []


def test_a_share_of_less_than_one_sequence_in_the_pattern_is_refused():
    with pytest.raises(RecipeError, match="data.sources: b: its share is less than one sequence in 10,000"):
        interleave(np.array([1 - 1e-5, 1e-5]), ["a", "b"])
    assert np.bincount(interleave(np.array([1 / 3, 1 / 3, 1 / 3]), ["a", "b", "c"])).sum() == PATTERN_LENGTH


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000])
def test_a_permutation_visits_everything_once(size):
    found = [permute(index, size, (5, 1)) for index in range(size)]
    assert sorted(found) == list(range(size))
    if size > 16:
        assert found != sorted(found) and found != [permute(index, size, (5, 2)) for index in range(size)]


def test_a_truncated_shard_is_refused_by_name(tiny_run):
    shard = next((tiny_run.output_dir / "tokens" / "law").glob("train-*.ds"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    with pytest.raises(RecipeError, match=rf"{shard.name}: [\d,]+ bytes where the manifest says [\d,]+"):
        mixture_of(tiny_run.output_dir / "tokens")


def test_a_source_shorter_than_a_sequence_is_refused(tokens):
    with pytest.raises(RecipeError, match="source law has .* less than one sequence of 10000000"):
        mixture_of(tokens, sequence_length=10_000_000)


def test_a_source_whose_shards_are_all_shorter_than_a_sequence_is_refused_with_the_longest(tmp_path):
    write_tokens(tmp_path / "tokens", {"law": [20, 30, 32], "web": [100]})
    said = (
        "source law has 32 tokens in the longest of its 3 shards, less than one sequence of 32 and the token after it"
    )
    with pytest.raises(RecipeError, match=said):
        open_shards(tmp_path / "tokens", 32)


def test_positions_start_anew_at_each_end_of_text():
    input_ids = np.array([[5, 6, 0, 7, 8, 0, 0, 9], [0, 1, 2, 3, 4, 5, 6, 7]])
    assert document_positions(input_ids, 0).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_validation_text_scores_each_token_of_its_documents_once_and_knows_their_bytes(
    tokenized_run, tokens, manifest
):
    lengths = token_byte_lengths(tokenized_run.output_dir / "tokenizer")
    whole = ValidationText(tokens, "law", sequence_length=32, max_bytes=10**9)
    scored = whole.labels[whole.labels != IGNORED_LABEL]
    validation = manifest["sources"]["law"]["validation"]
    assert len(scored) == validation["tokens"] - validation["documents"] - len(validation["shards"])
    assert lengths[scored].sum() == whole.num_bytes == validation["bytes"]
    assert 0 not in scored
    part = ValidationText(tokens, "law", sequence_length=32, max_bytes=1)
    assert 0 < part.num_bytes < whole.num_bytes
    assert lengths[part.labels[part.labels != IGNORED_LABEL]].sum() == part.num_bytes


def test_a_uniform_model_has_the_bits_per_byte_of_the_formula(tokenized_run, tokens):
    from accelerate import Accelerator

    from training.validation import score_validation

    class Uniform(torch.nn.Module):
        def forward(self, **inputs):
            assert all(tensor.is_contiguous() for tensor in inputs.values()), "a GPU copies them as they lie"
            labels = inputs["labels"]
            nats = (labels != IGNORED_LABEL).sum() * torch.tensor(384.0, dtype=torch.float64).log()
            return nats, nats

    text = ValidationText(tokens, "web", sequence_length=32, max_bytes=10**9)
    metrics = score_validation(Uniform(), {"web": text}, 4, Accelerator(), stop=lambda: False)
    num_tokens = (text.labels != IGNORED_LABEL).sum()
    assert metrics["eval/bits_per_byte/web"] == pytest.approx(np.log2(384) * num_tokens / text.num_bytes)
    assert metrics["eval/loss/web"] == pytest.approx(np.log(384))


def test_bytes_of_tokens_count_utf8_and_control_tokens_count_nothing(tokenized_run):
    folder = tokenized_run.output_dir / "tokenizer"
    lengths, tokenizer = token_byte_lengths(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("plain", "\N{SECTION SIGN} 12 \N{EURO SIGN}5", "\U0001f600 \ud55c\uad6d\uc5b4"):
        assert lengths[tokenizer(text).input_ids].sum() == len(text.encode())
    assert lengths[0] == 0


def test_bytes_of_added_tokens_that_are_text_count(tokenized_run, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenized_run.output_dir / "tokenizer")
    tokenizer.add_tokens(["\u00fc", "estoppel"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.save_pretrained(tmp_path)
    text = "The doctrine of estoppel binds f\u00fcr M\u00fcnchen."
    ids = encode(load_tokenizer(tmp_path), text)
    lengths = token_byte_lengths(tmp_path)
    assert tokenizer.convert_tokens_to_ids("estoppel") in ids and lengths[ids].sum() == len(text.encode())
    assert lengths[tokenizer.convert_tokens_to_ids("<|user|>")] == 0
