# SPDX-License-Identifier: Apache-2.0
"""Encoding in bulk: the shards are those of `tokenizers`, whatever fastokens does."""

import importlib.metadata
import json
import random
import shutil
import string
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import make_text
from tokenizers import Tokenizer

import tokenize_corpus
from corpus.document_files import document_id
from mixture.shard_writer import load_tokenizer, write_shard
from vocabulary import bulk_encoding
from vocabulary.bulk_encoding import CORNER_CASES, encode_all, encode_batch, load_fastokens
from vocabulary.byte_level_bpe import train_bpe
from vocabulary.round_trip import CORNER_CASES as MORE_CORNER_CASES
from vocabulary.round_trip import fuzz


class StandIn:
    """fastokens by `tokenizers`: right, or with a mistake in the texts that hold `mistake`."""

    mistake = error = None

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True

    @classmethod
    def from_json_str(cls, text: str):
        return cls(Tokenizer.from_str(text))

    def encode_batch_flat(self, texts: list[str], split_special_tokens: bool):
        assert split_special_tokens
        found = [self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        for text, ids in zip(texts, found, strict=True):
            if self.mistake is not None and self.mistake in text:
                if self.error is not None:
                    raise self.error
                # The right bytes in other tokens, which only a comparison finds.
                spelled = "".join(map(self.tokenizer.id_to_token, ids))
                ids[:] = map(self.tokenizer.token_to_id, spelled)
        ends = np.cumsum([0, *map(len, found)])
        return np.array(sum(found, []), "<u4").tobytes(), ends.astype("<u8").tobytes()


class Panic(BaseException):
    """What PyO3 raises where Rust panics."""


@pytest.fixture
def stand_in(monkeypatch):
    class Own(StandIn):
        pass

    monkeypatch.setitem(sys.modules, "fastokens", SimpleNamespace(Tokenizer=Own))
    monkeypatch.setattr(bulk_encoding, "version", lambda name: "0.0")
    return Own


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write documents as Parquet, and return what writes a shard of them and returns it, its index and its note."""
    folder = tmp_path_factory.mktemp("bulk")
    texts = [make_text(seed, sentences=3 + seed % 7) for seed in range(300)]
    texts += [text for text in CORNER_CASES if text] + ["before <|endoftext|> after", "x" * 30_000]
    rows = {"id": [document_id(text) for text in texts], "text": texts}
    pq.write_table(pa.table(rows), folder / "a.parquet", row_group_size=100)
    train_bpe(texts, "qwen2", 400).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (folder / "notes").mkdir()

    def write() -> tuple[bytes, bytes, str]:
        shard = folder / "a.ds"
        files = [(folder / "a.parquet", shard)]
        write_shard(None, 0, 1, files=files, tokenizer_folder=folder, notes=folder / "notes")
        return tuple(shard.with_suffix(suffix).read_bytes() for suffix in (".ds", ".index")) + (
            shard.with_suffix(".encoder").read_text(),
        )

    write.folder, write.texts, write.ids = folder, texts, rows["id"]
    return write


@pytest.fixture
def right(written, monkeypatch):
    """The shard and the index by `tokenizers` alone."""
    monkeypatch.setitem(sys.modules, "fastokens", None)
    shard, index, encoder = written()
    assert encoder.startswith("tokenizers: fastokens is not installed")
    return shard, index


def test_a_document_on_which_the_encoders_differ_is_named_and_tokenizers_writes_the_whole_shard(
    right, stand_in, written, monkeypatch
):
    monkeypatch.setattr(bulk_encoding, "CHECKED_ONE_IN", 1)
    monkeypatch.setattr("mixture.shard_writer.BATCH_BYTES", 10_000)
    stand_in.mistake = written.texts[250]
    *found, encoder = written()
    assert encoder == f"tokenizers: fastokens 0.0 gives other tokens for document {written.ids[250]}"
    assert tuple(found) == right


def test_every_long_document_is_compared(right, stand_in, written, monkeypatch):
    monkeypatch.setattr(bulk_encoding, "CHECKED_ONE_IN", 1 << 63)
    stand_in.mistake = "x" * 30_000
    assert written()[2] == "fastokens 0.0"
    monkeypatch.setattr(bulk_encoding, "LONG_CHARACTERS", 20_000)
    *found, encoder = written()
    assert encoder.endswith(f"for document {written.ids[-1]}") and tuple(found) == right


def test_fastokens_that_panics_or_fails_a_corner_case_is_not_used(right, stand_in, written):
    stand_in.mistake, stand_in.error = written.texts[3], Panic("index out of bounds")
    *found, encoder = written()
    assert "fails (Panic) for document" in encoder and tuple(found) == right
    stand_in.mistake, stand_in.error = "\u0915", None
    *found, encoder = written()
    assert "gives other tokens on corner case" in encoder and tuple(found) == right
    tokenizer = load_tokenizer(written.folder)
    assert load_fastokens(tokenizer)[0] is None
    tokens, ends = encode_all(written.texts, tokenizer)
    assert len(ends) == len(written.texts) and ends[-1] == len(tokens)


def test_a_stop_by_the_user_is_no_difference(stand_in, written):
    stand_in.mistake, stand_in.error = written.texts[3], KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        written()


def test_a_long_document_has_the_same_tokens_in_pieces(right, stand_in, written, monkeypatch):
    monkeypatch.setattr(bulk_encoding, "MAX_PIECE_CHARACTERS", 500)
    tokenizer = load_tokenizer(written.folder)
    fast, _ = load_fastokens(tokenizer)
    for by_fast, by_tokenizers in zip(
        *(encode_batch(written.texts, tokenizer, by) for by in (fast, None)), strict=True
    ):
        assert np.array_equal(by_fast, by_tokenizers)


def test_a_batch_ends_at_a_number_of_bytes_and_the_shards_do_not_depend_on_it(right, stand_in, written, monkeypatch):
    for size in (1, 5_000):
        monkeypatch.setattr("mixture.shard_writer.BATCH_BYTES", size)
        assert written() == (*right, "fastokens 0.0")


def test_the_run_says_what_encoded_its_shards(tiny_run, monkeypatch, capsys):
    tokens = tiny_run.output_dir / "tokens"
    before = (tokens / "manifest.json").read_text()
    shutil.rmtree(tokens)
    monkeypatch.setitem(sys.modules, "fastokens", None)
    tokenize_corpus.main(tiny_run.argv())
    assert "shards by tokenizers: fastokens is not installed" in capsys.readouterr().out
    assert (tokens / "manifest.json").read_text() == before
    encoders = json.loads((tokens / "encoders.json").read_text())
    [(encoder, shards)] = encoders.items()
    assert encoder.startswith("tokenizers: ") and len(shards) == len(list(tokens.rglob("*.ds")))
    assert not list(tokens.rglob("*.encoder"))


# --- with the real fastokens


@pytest.fixture
def real():
    pytest.importorskip("fastokens")
    return f"fastokens {importlib.metadata.version('fastokens')}"


def test_fastokens_writes_the_same_shards_bit_for_bit(real, right, written, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastokens")
    assert written() == (*right, real)


@pytest.mark.parametrize("style", ["qwen2", "qwen35", "llama-bpe", "multiword", "neutral"])
def test_fastokens_agrees_on_hostile_and_fuzzed_text(style, real):
    tokenizer = train_bpe([make_text(seed) for seed in range(30)], style, 400)
    tokenizer.encode_special_tokens = True
    fast, name = load_fastokens(tokenizer)
    assert name == real
    texts = [*MORE_CORNER_CASES.values()]
    texts += [text for kind in ("code points", "bytes as Latin-1", "bytes read as UTF-8") for text in fuzz(kind)]
    encode_batch(texts, tokenizer, fast, check_all=True)


@pytest.mark.parametrize(
    "unit", ["a", "0123456789abcdef", string.ascii_letters + string.digits + "+/", "ACGT", "\u0e01\u0e33", "\n", " "]
)
def test_time_is_near_linear_in_text_without_spaces(unit, real):
    tokenizer = train_bpe([make_text(seed) for seed in range(30)], "qwen2", 400)
    fast, _ = load_fastokens(tokenizer)

    def seconds(encode, num_characters: int) -> float:
        text = "".join(random.Random(0).choices(unit, k=num_characters))
        start = time.process_time()
        encode(text)
        return time.process_time() - start

    for encode in (lambda text: fast.encode_batch_flat([text]), lambda text: tokenizer.encode_batch_fast([text])):
        # Sixteen times the text; what grows with the square would take 256 times as long.
        assert seconds(encode, 480_000) < 80 * max(seconds(encode, 30_000), 0.01)
