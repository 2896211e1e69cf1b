# SPDX-License-Identifier: Apache-2.0
"""Vocabularies: lossless, the same for any order, threads and workers, and never of a size that was not asked for."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from invented_texts import TEXTS, count_bytes, make_text, sample_by_hand, unigram, write_training_texts
from tiny_run import RECIPES, tiny_settings
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recipe_config import RecipeError
from recipe_loading import load_recipe
from vocabulary import tokenizer_training
from vocabulary.byte_level_bpe import train_bpe
from vocabulary.pretokenization import PATTERNS, as_characters, splitter
from vocabulary.split_and_merge import merge, most_probable, train_unigram
from vocabulary.tokenizer_training import TrainingSample, sample_sizes
from vocabulary.training_sample import copied_slots, cut_pieces, read_chunk, write_chunks
from vocabulary.unigram_lattice import Lattice, Nodes, substrings
from vocabulary.unigram_trainer import by_length, count_words, learn_pieces, losses, piece_lattice


STYLES = [style for style in PATTERNS if style not in ("qwen35", "llama-bpe", "gpt4")]  # near enough to qwen2
LANGUAGES = [
    "\uc81c1\uc870 \uc774 \ubc95\uc740 \ubbfc\uc0ac\uc5d0 ",
    "\u79c1\u6a29\u306f\u3001\u516c\u5171\u306e\u798f\u7949",
    "e\u0301\u00e9 \u200d\U0001f468\u200d\U0001f469",
]


@pytest.fixture(
    scope="module", params=[(kind, style) for kind in ("bpe", "unigram") for style in STYLES], ids="-".join
)
def trained(request, tmp_path_factory):
    kind, style = request.param
    if kind == "bpe":
        return train_bpe(TEXTS[:30], style, 600, num_reserved=3)
    return unigram(TEXTS[:30], tmp_path_factory.mktemp("chunks") / "all", style, num_reserved=3, num_chunks=2)


# --- faults


def test_text_that_yields_too_few_tokens_is_refused_with_the_number_it_yields(tmp_path):
    with pytest.raises(RecipeError, match=r"tokenizer.vocab_size=5000: the text yields only \d+ tokens, from pairs"):
        train_bpe(["one and one and one"], "gpt4", 5000)
    with pytest.raises(RecipeError, match=r"tokenizer.vocab_size=5000: the text yields only \d+ tokens, from strings"):
        unigram(["one and one and one"], tmp_path / "a", vocab_size=5000)


def test_a_small_vocabulary_is_padded_with_reserved_tokens_if_the_recipe_says_so(tmp_path):
    for tokenizer in (
        train_bpe(["one and one"], "gpt4", 300, num_reserved=2, pad=True),
        unigram(["one and one"], tmp_path / "a", vocab_size=300, num_reserved=2, pad=True),
    ):
        names = [tokenizer.id_to_token(number) for number in range(300)]
        reserved = [name for name in names if name.startswith("<|reserved_")]
        assert tokenizer.get_vocab_size() == 300 and len(reserved) > 20
        assert names[-len(reserved) :] == [f"<|reserved_{index}|>" for index in range(len(reserved))]


@pytest.mark.parametrize(
    "token, said",
    [
        ("<|endoftext|>", "listed twice"),
        ("<|reserved_0|>", "name of a reserved"),
        ("pad", "could be a word"),
        ("", "be"),
    ],
)
def test_special_tokens_that_repeat_or_could_be_text_are_refused(token, said, tmp_path):
    for train in (train_bpe, lambda *args, **settings: unigram(args[0], tmp_path / "a", vocab_size=600, **settings)):
        with pytest.raises(RecipeError, match=said):
            train(TEXTS, "gpt4", 600, special_tokens=["<|endoftext|>", token])


def test_a_size_without_room_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(
        RecipeError, match="vocab_size=260: the bytes, special and reserved tokens alone are 267 tokens"
    ):
        train_bpe(TEXTS, "gpt4", 260, num_reserved=10)
    with pytest.raises(RecipeError, match="alone are 267 tokens; set it to more"):
        unigram(TEXTS, tmp_path / "a", vocab_size=260, num_reserved=10)


def test_no_text_at_all_is_refused_and_an_empty_source_is_not(tmp_path):
    with pytest.raises(RecipeError, match="no text to train"):
        unigram([""], tmp_path / "a")
    with pytest.raises(RecipeError, match="yields only 257"):
        train_bpe([], "gpt4", 300)
    files = write_chunks(cut_pieces(TEXTS), 1, tmp_path / "b", seed=0)
    assert train_unigram({"none": [], "all": files}, "gpt4", 400).get_vocab_size() == 400


# --- every tokenizer


def test_every_byte_string_is_encoded_and_decodes_to_itself(trained):
    choose = random.Random(1)
    anything = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000] + ["\U0010ffff", "\uac00"]
    strings = ["".join(choose.choices(anything, k=40)) for _ in range(200)]
    for string in [*strings, *LANGUAGES, *TEXTS[:3], "", " ", "\r\n\t ", "\ufeff\u0000", "a" * 500]:
        numbers = trained.encode(string).ids
        assert None not in numbers and trained.decode(numbers) == string
    assert all(trained.token_to_id(as_characters(bytes([value]))) is not None for value in range(256))


def test_the_tokenizer_has_the_target_size_and_autotokenizer_loads_it(trained, tmp_path):
    wrapped = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    wrapped.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == trained.get_vocab_size() == 600 and loaded.eos_token_id == 0 and loaded.unk_token is None
    assert loaded.convert_tokens_to_ids(["<|reserved_0|>", "<|reserved_2|>"]) == [597, 599]
    text = TEXTS[0] + "".join(LANGUAGES)
    assert loaded(text).input_ids == trained.encode(text).ids and loaded.decode(loaded(text).input_ids) == text


def test_the_text_of_a_special_token_is_text(trained):
    text = "before <|endoftext|> after <|reserved_1|>"
    trained.encode_special_tokens = True
    numbers = trained.encode(text).ids
    trained.encode_special_tokens = False
    assert not {0, 597, 598, 599} & set(numbers) and trained.decode(numbers) == text


def test_special_tokens_that_the_training_text_spells_are_not_learnt(tmp_path):
    texts = ["<|endoftext|><|reserved_0|> " * 50] * 20
    for style in STYLES:
        for tokenizer in (
            train_bpe(texts, style, 300, num_reserved=1, pad=True),
            unigram(texts, tmp_path / style, style, 300, num_reserved=1, pad=True),
        ):
            tokenizer.encode_special_tokens = True
            special = {tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|reserved_0|>")}
            assert not special & set(tokenizer.encode(texts[0]).ids)


def test_multiword_learns_tokens_of_several_words_and_the_others_do_not(tmp_path):
    texts = ["it is the policy of the court that the party of the first part pay in full"] * 50
    for style in STYLES:
        tokenizer = unigram(texts, tmp_path / style, style, 300, pad=True)
        several = [entry for entry in tokenizer.get_vocab() if "\u0120" in entry[1:-1]]
        assert bool(several) == (style == "multiword")


# --- determinism


def test_llama_bpe_looks_up_whole_pieces_as_llama_cpp_does_under_this_name():
    for style in ("qwen2", "llama-bpe"):
        trained = train_bpe(["the heirs pay 1250 and 125 " * 20], style, 300, pad=True)
        assert trained.model.ignore_merges == (style == "llama-bpe")
        assert ("125" in trained.get_vocab()) == (style == "llama-bpe")


def test_neither_the_order_of_texts_nor_threads_change_a_bpe():
    code = (
        "import json, random, sys; from vocabulary.byte_level_bpe import train_bpe\n"
        "texts = json.load(sys.stdin); random.Random(sys.argv[1]).shuffle(texts)\n"
        "sys.stdout.write(train_bpe(texts, 'multiword', 500).to_str())"
    )
    results = set()
    for order, threads, parallel in (("0", "1", "false"), ("1", "2", "true")):
        settings = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": order}
        done = subprocess.run(
            [sys.executable, "-c", code, order],
            input=json.dumps(TEXTS[:30]),
            env=os.environ | settings | {"PYTHONPATH": str(RECIPES)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results.add(done.stdout)
    assert len(results) == 1


def test_neither_the_order_of_texts_nor_workers_change_a_unigram(tmp_path):
    shuffled = random.Random(3).sample(TEXTS, len(TEXTS))
    one = unigram(TEXTS, tmp_path / "a", num_chunks=3, workers=1)
    two = unigram(shuffled, tmp_path / "b", num_chunks=3, workers=2)
    assert one.to_str() == two.to_str()


# --- the sample


SAMPLED = {"law": [*TEXTS, make_text(60, 50_000)], "web": [make_text(seed) for seed in range(100, 130)]}


def sample_of(folder, share: float, files: int = 1):
    """Return a TrainingSample of all of `law`, and of twice the given share of half of it and of `web`."""
    documents = write_training_texts(folder / "documents", SAMPLED, files)
    size = count_bytes(SAMPLED["law"])
    settings = [*tiny_settings(folder, folder), f"--tokenizer.max_train_bytes={size}"]
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], settings)
    mixtures = [{"law": 1.0}, {"law": 1 - share, "web": share}]
    return TrainingSample(recipe, documents, mixtures, folder / "sample"), mixtures


def read_sample(sample, shares: dict[str, float], name: str = "ours") -> dict[str, list[str]]:
    return {source: sorted(part) for source, part in sample.read(shares, splitter("gpt4"), name).items()}


def test_a_sample_of_which_too_little_was_copied_is_drawn_from_all_text_after_all(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "copied_slots", lambda sample_bytes, source_bytes: 100)
    sample, (whole, _) = sample_of(tmp_path, 0.1)
    assert read_sample(sample, whole) == {"law": sorted(cut_pieces(SAMPLED["law"]))}


def test_all_tokenizers_read_the_documents_once_and_get_their_own_samples_whatever_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "BYTES_PER_TASK", 10_000)
    opened = Counter()
    read = tokenizer_training.read_columns
    monkeypatch.setattr(
        tokenizer_training, "read_columns", lambda file, names: opened.update([file]) or read(file, names)
    )
    sample, (whole, mixed) = sample_of(tmp_path, 0.05, files=6)
    assert read_sample(sample, whole) == {"law": sorted(cut_pieces(SAMPLED["law"]))}
    sizes = sample_sizes(sample.recipe, mixed, sample.available)
    part = read_sample(sample, mixed)
    assert part == {source: sample_by_hand(SAMPLED[source], size) for source, size in sizes.items()}
    assert not Counter(part["law"]) - Counter(cut_pieces(SAMPLED["law"])) and set(opened.values()) == {1}
    assert len(opened) == 12 and len(list(sample.copies.glob("law/*.jsonl"))) > 2
    assert {source: found["bytes"] for source, found in sample.drawn["ours"].items()} == {
        source: count_bytes(pieces) for source, pieces in part.items()
    }
    again, _ = sample_of(tmp_path / "again", 0.05)
    assert read_sample(again, mixed) == part


def test_of_a_large_source_little_more_is_copied_than_a_sample_needs():
    for sample_bytes, source_bytes in ((10**9, 10**12), (10**9, 2 * 10**9), (10**6, 10**9)):
        copied = copied_slots(sample_bytes, source_bytes) / 65536 * source_bytes
        assert sample_bytes < copied < 3 * sample_bytes
    assert copied_slots(10**9, 10**12) <= 1.1 * 65.536 and copied_slots(10**9, 10**9) == 65536
    assert copied_slots(0, 10**6) > 0


def test_chunks_hold_every_piece_once_in_any_order_and_in_limited_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("vocabulary.training_sample.BUFFERED_BYTES", 1000)
    pieces = [*TEXTS, *LANGUAGES]
    files = write_chunks(pieces, 4, tmp_path / "a", seed=0)
    assert Counter(piece for file in files for piece in read_chunk(file)) == Counter(pieces) and len(files) == 4
    again = write_chunks(pieces[::-1], 4, tmp_path / "b", seed=0)
    for one, other in zip(files, again, strict=True):
        assert Counter(read_chunk(one)) == Counter(read_chunk(other))


# --- the lattice, against enumeration


def all_cuts(word: bytes, scores: dict[bytes, float]):
    if not word:
        yield []
    for end in range(1, len(word) + 1):
        if word[:end] in scores:
            yield from ([word[:end], *rest] for rest in all_cuts(word[end:], scores))


def small_lattice():
    """Three words, pieces of up to three bytes of them, and scores."""
    words, weights = by_length([b"banana", b"nab", b"a"]), np.array([3.0, 2.0, 5.0])
    pieces = by_length([b"ana", b"an", b"na", b"nan", b"b", b"a", b"n"])
    nodes, starts, numbers = Nodes(words), [], []
    for level in substrings(nodes, weights, 3, 0):
        found = []
        for start in level.starts.tolist():
            step = int(np.searchsorted(nodes.first, start, side="right")) - 1
            found.append(words[nodes.word[start]][step : step + len(starts) + 1])
        is_piece = np.array([substring in pieces for substring in found])
        starts.append(level.starts[is_piece])
        numbers.append(np.array([pieces.index(f) for f in found if f in pieces], dtype=np.int32))
    scores = np.log(np.arange(1, len(pieces) + 1) / 28)
    return words, weights, pieces, Lattice(nodes, starts, numbers), scores


def test_substrings_are_counted_as_often_as_they_occur():
    words, weights = by_length([b"banana", b"nab", b"a"]), np.array([3.0, 2.0, 5.0])
    for length, level in enumerate(substrings(Nodes(words), weights, 6, 4), 1):
        expected = Counter()
        for word, weight in zip(words, weights, strict=True):
            for start in range(len(word) - length + 1):
                expected[word[start : start + length]] += weight
        frequent = sorted(count for count in expected.values() if count >= 4 or length == 1)
        assert sorted(level.counts[level.counts > 0]) == frequent
    assert length == 3, "of four bytes none occurs four times"


def test_expected_counts_and_best_segmentations_are_those_of_all_enumerated():
    words, weights, pieces, lattice, scores = small_lattice()
    by_piece = dict(zip(pieces, scores.tolist(), strict=True))
    expected, best = Counter(), {}
    for word, weight in zip(words, weights, strict=True):
        cuts = list(all_cuts(word, by_piece))
        probabilities = [math.exp(sum(by_piece[piece] for piece in cut)) for cut in cuts]
        for cut, probability in zip(cuts, probabilities, strict=True):
            for piece in cut:
                expected[piece] += weight * probability / sum(probabilities)
        best[word] = cuts[int(np.argmax(probabilities))]
    assert lattice.expected_counts(scores, weights) == pytest.approx([expected[piece] for piece in pieces], rel=1e-5)
    found = {word: [] for word in words}
    for indices, taken in lattice.best_segmentations(scores):
        for index, piece in zip(indices, taken, strict=True):
            found[words[index]].insert(0, pieces[piece])
    assert found == best


def test_dropping_pieces_leaves_the_lattice_of_the_others():
    words, weights, pieces, lattice, scores = small_lattice()
    alive = np.array([piece not in (b"ana", b"nan") for piece in pieces])
    scores = np.where(alive, scores, -np.inf)
    lattice.keep(alive)
    counts = lattice.expected_counts(scores, weights)
    assert not counts[~alive].any() and sum(counts * [len(piece) for piece in pieces]) == pytest.approx(3 * 6 + 6 + 5)


def test_the_loss_of_a_piece_is_the_likelihood_lost_with_its_best_parts():
    pieces = by_length([b"ab", b"a", b"b"])
    frequencies = np.array([6.0, 3.0, 1.0])
    loss = losses(frequencies, np.log(frequencies / 10), piece_lattice(pieces))
    # Ten uses become sixteen, of which a and b have nine and seven.
    assert loss[0] == pytest.approx(6 * (math.log(6 / 10) - math.log(9 / 16) - math.log(7 / 16)))


def test_pieces_that_cover_the_text_are_learnt_and_probabilities_add_up_to_1():
    counts = count_words(["the court and the court of the courts"] * 30, "gpt4")
    learnt = learn_pieces(counts, 262, 16)
    assert len(learnt) == 262 and sum(learnt.values()) == pytest.approx(1)
    assert {b" the", b" court"} <= set(learnt) and {bytes([value]) for value in range(256)} <= set(learnt)


# --- merging


def test_a_merge_averages_by_bytes_and_a_piece_that_is_absent_counts_as_0():
    merged, num_bytes = merge([({b"a": 0.5, b"ab": 0.5}, 300), ({b"a": 1.0}, 100)])
    assert merged == pytest.approx({b"a": 0.625, b"ab": 0.375}) and num_bytes == 400


def test_merging_merged_chunks_equals_merging_all_chunks():
    models = [({b"a": 0.5, b"ab": 0.5}, 300), ({b"a": 1.0}, 100), ({b"b": 0.25, b"a": 0.75}, 600)]
    assert merge([merge(models[:2]), merge(models[2:])])[0] == pytest.approx(merge(models)[0])


def test_a_merge_of_very_many_pieces_drops_the_least_probable(monkeypatch):
    monkeypatch.setattr("vocabulary.split_and_merge.MAX_MERGED", 300)
    model = {bytes([value]): 1e-9 for value in range(256)} | {b"x%d" % index: index for index in range(1000)}
    merged, _ = merge([(model, 1), (model, 1)])
    assert len(merged) == 300 and b"x999" in merged and b"x900" not in merged and b"\xff" in merged


def test_the_bytes_are_kept_however_improbable():
    model = {bytes([value]): 1e-9 for value in range(256)} | {b"ab": 0.5, b"cd": 0.4, b"ef": 0.1}
    kept = most_probable(model, 258)
    assert len(kept) == 258 and {b"ab", b"cd"} < set(kept) and b"ef" not in kept


def test_chunks_merged_compress_about_as_well_as_one(tmp_path):
    texts, held_out = TEXTS[:50], TEXTS[50:]
    tokens = [
        sum(
            len(unit.ids)
            for unit in unigram(texts, tmp_path / str(n), vocab_size=400, num_chunks=n).encode_batch(held_out)
        )
        for n in (1, 3)
    ]
    assert tokens[1] < 1.1 * tokens[0]


# --- adversarial text


@pytest.mark.parametrize("unit", ["a", "ACGT", "Zm9vYmFy", "\u5b57", "- "])
def test_time_is_near_linear_in_one_word_without_end(unit, tmp_path):
    def seconds(num_characters: int) -> list[float]:
        choose = random.Random(0)
        text = "".join(choose.choices(unit, k=num_characters))
        start = time.process_time()
        tokenizer = train_bpe(cut_pieces([text]), "gpt4", 300, pad=True)
        middle = time.process_time()
        tokenizer.encode(text)
        return [middle - start, time.process_time() - middle]

    small, large = seconds(12_500), seconds(200_000)
    # Sixteen times the text; what grows with the square would take 256 times as long.
    assert all(after < 80 * max(before, 0.02) for before, after in zip(small, large, strict=True))


@pytest.mark.long
def test_a_word_of_5_megabytes_is_trained_on_and_comes_back():
    word = "".join(random.Random(0).choices("abcdefghij", k=5_000_000))
    tokenizer = train_bpe(cut_pieces([word, *TEXTS]), "gpt4", 300)
    assert tokenizer.decode(tokenizer.encode(word).ids) == word


def test_a_lattice_of_improbable_bytes_does_not_underflow(tmp_path):
    text = "the court of the court " * 2000 + "".join(map(chr, range(0x4E00, 0x4F00)))
    tokenizer = unigram([text], tmp_path / "a", "multiword", 300, pad=True)
    scores = [score for _, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    assert all(map(math.isfinite, scores)) and tokenizer.decode(tokenizer.encode(text).ids) == text
