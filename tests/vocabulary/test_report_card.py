# SPDX-License-Identifier: Apache-2.0
"""The report card measures a tokenizer on held-out text and counts nothing that the tokenizer did not do."""

import base64
import json
import struct
import subprocess
import sys
import zipfile

import pytest
from tiny_run import RECIPES, make_text
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from recipe_config import RecipeError
from recipe_loading import load_recipe
from vocabulary.measures import (
    count_tokens,
    encoding_speed,
    first_bytes,
    number_cuts,
    read_terms,
    term_integrity,
    usage,
    word_spans,
)
from vocabulary.report_card import report_card, write_tokenizer_card
from vocabulary.round_trip import CORNER_CASES, fuzz, round_trip
from vocabulary.tokenizer_files import load_tokenizer, read_tokenizer
from vocabulary.verdict import verdict


PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def byte_level(texts: list[str] = (), vocab_size: int = 400) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken("<|endoftext|>", special=True)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def with_merges(merges: list[tuple[str, str]]) -> Tokenizer:
    entries = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + varint(number // 128)


def field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, float):
        return varint(number * 8 + 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number * 8) + varint(value)
    return varint(number * 8 + 2) + varint(len(value)) + value


def sentencepiece_model(model_type: int = 2, extra_spaces: int = 0) -> bytes:
    """Return a model with a few pieces, all 256 bytes, and one control piece."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [("\u2581t", -1.0, 1), ("or", -2.0, 1), ("\u2581tor", -3.0, 1), ("\u2581tort", -4.0, 1)]
    pieces += [(letter, -9.0, 1) for letter in "\u2581torhe"]
    message = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + (field(3, kind) if kind != 1 else b""))
        for text, score, kind in pieces
    )
    return message + field(2, field(3, model_type) + field(35, 1)) + field(3, field(3, 1) + field(4, extra_spaces))


def write_tekken(path) -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b" t", b"or", b" tor", b" tort", b"never reached"]
    ranked = [{"rank": rank, "token_bytes": base64.b64encode(t).decode()} for rank, t in enumerate(tokens)]
    config = {"pattern": PATTERN, "default_vocab_size": 263, "default_num_special_tokens": 3}
    special = [{"rank": 1, "token_str": "<s>", "is_control": True}]
    path.write_text(json.dumps({"config": config, "vocab": ranked, "special_tokens": special}))


# Reading tokenizers


def test_a_file_that_is_no_tokenizer_is_refused_with_its_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("{}")
    (tmp_path / "noise.model").write_bytes(b"\xff" * 50)
    for where in ("empty", "text.json", "noise.model", "missing.json"):
        with pytest.raises(RecipeError, match=where):
            load_tokenizer(str(tmp_path / where))


@pytest.mark.parametrize(("change", "remedy"), [({"model_type": 1}, "BPE"), ({"extra_spaces": 1}, "spaces")])
def test_a_sentencepiece_model_that_would_be_read_wrongly_is_refused(change, remedy):
    with pytest.raises(RecipeError, match=f"a.model.*{remedy}"):
        read_tokenizer(sentencepiece_model(**change), "a.model")


def test_a_tekken_file_in_a_wheel_is_read_with_its_ids_and_size(tmp_path):
    write_tekken(tmp_path / "tekken.json")
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.write(tmp_path / "tekken.json", "package/data/tekken.json")
    tokenizer = load_tokenizer(f"zip://package/data/tekken.json::{tmp_path}/package.whl")
    assert tokenizer.get_vocab_size() == 263
    assert tokenizer.encode("a tort <s>").ids == [3 + 97, 3 + 259, *(3 + byte for byte in b" <s>")]
    assert round_trip(tokenizer)["exact"]


def test_a_sentencepiece_model_merges_by_score_and_yields_no_control_piece():
    tokenizer = read_tokenizer(sentencepiece_model(), "a.model")
    assert tokenizer.encode("tort the").tokens == ["\u2581tort", "\u2581t", "h", "e"]
    assert tokenizer.encode("<s>").tokens == ["\u2581", "<0x3C>", "<0x73>", "<0x3E>"]
    assert tokenizer.decode(tokenizer.encode("tort é\n").ids) == "tort é\n"


def test_a_folder_and_a_tokenizer_json_give_the_same_tokens(tmp_path):
    tokenizer = byte_level([make_text(1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "folder")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for where in ("folder", "tokenizer.json"):
        assert load_tokenizer(str(tmp_path / where)).encode(make_text(2)).ids == tokenizer.encode(make_text(2)).ids


def test_a_folder_that_reads_special_tokens_as_text_is_measured_that_way(tmp_path):
    wrapped = PreTrainedTokenizerFast(tokenizer_object=byte_level(), split_special_tokens=True)
    wrapped.save_pretrained(tmp_path)
    assert round_trip(load_tokenizer(str(tmp_path)))["special_tokens_yielded_by_text"] == 0


# Bytes, words, terms, numbers


def test_text_beyond_the_limit_is_truncated_between_characters():
    assert first_bytes(["abc", "ééé", "never"], 6) == ["abc", "é"]
    assert first_bytes(["abc"], 3) == ["abc"]
    assert first_bytes([], 3) == []


def test_a_source_without_held_out_text_is_refused():
    with pytest.raises(RecipeError, match="law: no held-out text"):
        report_card({"ours": byte_level()}, {"law": [""]}, {"law": "legal"}, {}, {})


def test_tokens_added_around_a_text_are_not_counted():
    text = make_text(1)
    plain, framed = byte_level([text]), byte_level([text])
    framed.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert len(framed.encode("a").ids) == 3
    counts = [count_tokens(t, [text], [word_spans(text)]) for t in (plain, framed)]
    assert counts[0] == counts[1]
    assert number_cuts(plain) == number_cuts(framed)
    assert term_integrity(plain, ["tenant"]) == term_integrity(framed, ["tenant"])


def test_bytes_are_those_before_normalisation_and_the_round_trip_is_reported_as_failing():
    lossy = byte_level()
    lossy.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    assert count_tokens(lossy, ["ﬁ Å"], [word_spans("ﬁ Å")])["bytes"] == len("ﬁ Å".encode())
    result = round_trip(lossy)
    assert not result["exact"]
    assert {"compatibility characters", "capitals"} <= set(result["corner_failures"])
    assert 0 <= result["fuzzed"]["bytes as Latin-1"]["exact_fraction"] < 1


def test_words_are_counted_with_the_tokens_that_hold_a_part_of_them():
    text = "the tort 2023 判例 é"
    spans = word_spans(text)
    assert [text[start:end] for start, end in spans] == ["the", "tort", "判", "例", "é"]
    counts = count_tokens(byte_level(), [text], [spans])  # every byte a token, the space before a word no part of it
    assert counts["words"] == 5 and counts["digit_tokens"] == 4
    assert counts["word_tokens"] == len("thetort判例é".encode())
    assert counts["split_words"] == 5
    whole = byte_level([" tort the"] * 9, 300)
    assert count_tokens(whole, [" tort the"], [word_spans(" tort the")])["split_words"] == 0


def test_a_term_is_whole_when_one_token_holds_it_and_the_space_before_it():
    tokenizer = byte_level(["the tort, the tort"] * 9, 300)
    result = term_integrity(tokenizer, ["tort", "res judicata"])
    assert result["whole_fraction"] == 0.5
    assert result["terms_without_space"] == 1 and result["whole_fraction_without_space"] == 1
    assert result["whole_fraction_at_start"] == 0
    assert result["worst"][0] == {"term": "res judicata", "pieces": list(" res judicata")}


def test_a_part_of_a_character_is_shown_as_its_bytes():
    assert term_integrity(byte_level(), ["§ 2"])["worst"][0]["pieces"] == [" ", "\\xc2", "\\xa7", " ", "2"]
    fallback = read_tokenizer(sentencepiece_model(), "a.model")
    assert term_integrity(fallback, ["tort"])["worst"][0]["pieces"] == [" tort"]
    assert term_integrity(fallback, ["§"])["worst"][0]["pieces"] == [" ", "\\xc2", "\\xa7"]


def test_numbers_of_one_length_that_are_split_differently_are_reported():
    single = number_cuts(byte_level(["in 2023"] * 99))
    assert single["consistent"] and single["by_digits"]["4"]["commonest_cut"] == "1+1+1+1"
    uneven = number_cuts(with_merges([("2", "0")]))
    assert not uneven["consistent"] and uneven["by_digits"]["2"]["cuts"] == 2
    assert uneven["examples"]["2023"] == [" ", "20", "2", "3"]


# Losslessness and use


def test_a_tokenizer_without_some_bytes_is_reported():
    tokenizer = Tokenizer(models.BPE({"a": 0, "Ġ": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    result = round_trip(tokenizer)
    assert not result["exact"] and result["bytes_with_a_token"] == 2


def test_a_lossless_tokenizer_passes_and_says_which_text_yields_special_tokens():
    result = round_trip(byte_level())
    assert result["exact"] and result["bytes_with_a_token"] == 256
    assert result["special_tokens_yielded_by_text"] == 1 and result["yielded_examples"] == ["<|endoftext|>"]


def test_the_fuzzed_texts_hold_lone_marks_control_characters_and_every_plane():
    characters = set("".join(fuzz("code points")))
    assert any("\u0300" <= c <= "\u036f" for c in characters) and any(c < " " for c in characters)
    assert len({ord(c) >> 16 for c in characters}) > 10
    assert set("".join(fuzz("bytes as Latin-1"))) == {chr(byte) for byte in range(256)}
    assert "\ufffd" in "".join(fuzz("bytes read as UTF-8"))
    assert all("".join(texts).encode() for texts in (fuzz("code points"), CORNER_CASES.values()))


def test_tokens_never_and_rarely_used_are_counted_without_the_special_ones():
    tokenizer = with_merges([("a", "b"), ("x", "y")])
    tokenizer.add_special_tokens(["<|endoftext|>"])
    result = usage(tokenizer, {"law": ["ab" * 20, "c"]})
    assert result["entries"] == 258 and result["sample_tokens"] == 21
    assert result["never_used"] == 256 and result["never_used_single_bytes"] == 255
    assert result["never_used_examples"] == ["xy"]
    assert result["under_trained"] == 1


# Verdict, card, terms


def measured(sizes_and_tokens: dict[str, tuple[int, int]], digits: float = 0.0) -> dict:
    """Return what the verdict reads; `digits` is the fraction of the first tokenizer's tokens that have a digit."""
    fractions = {name: digits if name == next(iter(sizes_and_tokens)) else 0.0 for name in sizes_and_tokens}
    return {
        name: {
            "vocab_size": size,
            "domains": {
                domain: {
                    "tokens": tokens,
                    "bytes_per_token": 1000 / tokens,
                    "digit_tokens_fraction": fractions[name],
                }
                for domain in ("legal", "general")
            },
        }
        for name, (size, tokens) in sizes_and_tokens.items()
    }


def test_the_verdict_says_where_a_tokenizer_does_not_beat_one_of_its_size_or_larger():
    result = verdict(
        measured({"ours": (8192, 250), "large": (131_072, 200), "same": (8192, 300), "huge": (131_073, 100)}),
        {"general"},
    )
    assert result["beats_all_it_has_to"] is False
    lost, outside, general = result["sentences"]
    assert "does NOT beat 1 of the 2 other" in lost and "25.0 % more tokens" in lost and "same (" not in lost
    assert "huge (vocabulary 131,073" in outside
    assert "not its own domain" in general


def test_the_verdict_says_when_only_the_digits_make_the_difference():
    result = verdict(measured({"ours": (8192, 250), "large": (131_072, 240)}, digits=0.2), {"general"})
    assert "does NOT beat 1" in result["sentences"][0]
    assert "large, 16.7 % fewer" in result["sentences"][1]


def test_the_verdict_says_by_how_much_the_next_best_is_beaten():
    result = verdict(measured({"ours": (8192, 200), "same": (8192, 250), "small": (300, 900)}), {"general"})
    assert result["beats_all_it_has_to"] is True
    assert result["sentences"][0] == (
        "legal: 5.000 bytes per token with a vocabulary of 8,192 beats every other tokenizer of sizes 8,192 to "
        "131,072 (1 measured); the next best is same (vocabulary 8,192, 4.000): 20.0 % fewer tokens for the same text."
    )


def test_the_verdict_without_others_claims_nothing():
    assert verdict(measured({"ours": (8192, 200)}), ())["beats_all_it_has_to"] is None
    result = verdict(measured({"ours": (8192, 200), "small": (300, 100)}), {"general"})
    assert result["beats_all_it_has_to"] is None
    assert "no other tokenizer of sizes 8,192 to" in result["sentences"][0] and "small" in result["sentences"][1]


@pytest.fixture(scope="module")
def card() -> dict:
    law, web = ([make_text(seed) for seed in range(first, first + 8)] for first in (0, 50))
    return report_card(
        {"domain tokenizer": byte_level(law), "bytes | alone": byte_level()},
        {"law": law[:4], "web": web},
        {"law": "legal", "web": "general"},
        {"legal": ["licensee", "mens rea", "28 U.S.C. § 1331"]},
        {"law": law[4:]},
    )


def test_the_card_adds_up_domains(card):
    own = card["tokenizers"]["domain tokenizer"]
    assert own["domains"]["legal"] == own["sources"]["law"]
    assert own["sources"]["law"]["bytes"] == card["held_out"]["law"]["bytes"]
    assert card["verdict"]["beats_all_it_has_to"] is None  # the other one is smaller
    assert json.loads(json.dumps(card)) == card


def test_another_process_with_another_hash_seed_finds_the_same(tmp_path):
    tokenizer = byte_level([make_text(1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    measure = "json.dumps([round_trip(t), usage(t, {'a': ['the tort']}), term_integrity(t, ['tort', 'mens rea'])])"
    code = (
        "import json; from tokenizers import Tokenizer; t = Tokenizer.from_file('tokenizer.json'); "
        "from vocabulary.measures import term_integrity, usage; from vocabulary.round_trip import round_trip; "
        f"print({measure})"
    )
    environment = {"PYTHONPATH": str(RECIPES), "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, check=True)
    texts = {"a": ["the tort"]}
    expected = [round_trip(tokenizer), usage(tokenizer, texts), term_integrity(tokenizer, ["tort", "mens rea"])]
    assert json.loads(done.stdout) == expected


def test_the_published_card_shows_names_terms_and_numbers_as_text(card, tmp_path):
    write_tokenizer_card(load_recipe([RECIPES / "custom" / "base.yaml"]), card, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "bytes \\| alone" in text
    assert "| legal | 28 U.S.C. § 1331 |" in text
    assert "Every text tried decodes to itself" in text
    assert f"{card['tokenizers']['domain tokenizer']['domains']['legal']['bytes_per_token']:.3f}" in text
    assert "{{" not in text and "None" not in text


def test_speed_is_measured_apart():
    result = encoding_speed(byte_level(), [make_text(1)], repetitions=1)
    assert result["bytes"] == len(make_text(1).encode()) and result["megabytes_per_second"] > 0


@pytest.mark.parametrize("content", ["# only a heading\n", "tort\nTort\n"])
def test_a_term_list_without_terms_or_with_one_twice_is_refused(content, tmp_path):
    (tmp_path / "terms.txt").write_text(content)
    with pytest.raises(RecipeError, match="terms.txt"):
        read_terms(tmp_path / "terms.txt")


@pytest.mark.parametrize("domain", ["legal", "finance", "medical"])
def test_each_domains_term_list_is_long_grouped_and_free_of_duplicates(domain):
    path = RECIPES / domain / "terms.txt"
    assert len(read_terms(path)) >= 320
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and sum(line.startswith("# ") for line in lines) >= 5
    assert all(line == line.strip() and line for line in lines)
