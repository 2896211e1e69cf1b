# SPDX-License-Identifier: Apache-2.0
"""tokenizer.min_documents: no token of the vocabulary is of fewer documents, with either algorithm."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from invented_texts import count_bytes, write_training_texts
from tiny_run import RECIPES, make_text, tiny_settings

from recipe_config import RecipeError
from recipe_loading import load_recipe
from vocabulary.pretokenization import splitter
from vocabulary.rare_words import FrequentWords
from vocabulary.token_bytes import token_bytes
from vocabulary.tokenizer_training import TrainingSample, train_tokenizer


NAME = "Zyqqerwald"


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_name_of_one_document_is_in_the_vocabulary_unless_min_documents_leaves_it_out(tmp_path, algorithm, capsys):
    texts = {"law": [make_text(seed) for seed in range(20)], "web": [make_text(seed) for seed in range(50, 60)]}
    texts["law"][3] = f"{NAME} pays {NAME}.\n" * 900 + texts["law"][3]
    documents = write_training_texts(tmp_path / "documents", texts)

    def train(*overrides: str) -> list[bytes]:
        given = [*tiny_settings(tmp_path, tmp_path), f"--tokenizer.algorithm={algorithm}", *overrides]
        recipe = load_recipe([RECIPES / "custom" / "base.yaml"], given)
        shares = {source: count_bytes(own) for source, own in texts.items()}  # so that all text is in the sample
        with TemporaryDirectory(dir=tmp_path) as folder:
            sample = TrainingSample(recipe, documents, [shares], Path(folder))
            return token_bytes(train_tokenizer(recipe, sample, shares, 310, False, "ours"))

    assert any(b"qqer" in entry for entry in train())
    long = [entry for entry in train("--tokenizer.min_documents=2") if len(entry) > 1]
    assert len(long) == 310 - 256 - 1, "the vocabulary has its size all the same"
    whole = [text.encode() for own in texts.values() for text in own]
    assert not [entry for entry in long if sum(entry in text for text in whole) < 2]
    assert not any(b"qq" in entry for entry in long)
    assert "different words are in fewer than 2 documents and were left out" in capsys.readouterr().out


def test_a_text_is_divided_at_the_words_that_are_left_out_and_keeps_the_others():
    documents = [
        ["The Acme pays (Acme) 5 Euro.\n\nThe end"],
        ["The Acme case.", " It pays 5 Euro. The end"],
        ["(Euro) end"],
    ]
    frequent = FrequentWords(documents, splitter("qwen2"), 2)
    assert " Acme" in frequent.words, "it is in two documents"
    assert "(Acme" not in frequent.words
    [text] = documents[0]
    parts = list(frequent.stretches(text))
    assert parts[0] == "The Acme pays"
    assert "".join(parts) == "".join(word for word in frequent.split(text) if word in frequent.words)
    assert "".join(frequent.split(text)) == text
    assert frequent.left_out == len({word for d in documents for piece in d for word in frequent.split(piece)}) - len(
        frequent.words
    )


def test_pieces_of_one_document_count_once():
    assert not FrequentWords([["Acme a", "Acme b"]], splitter("qwen2"), 2).words


def test_phrases_cannot_be_left_out():
    with pytest.raises(RecipeError, match="tokenizer.min_documents: leaves out nearly all of multiword's pieces"):
        load_recipe(
            [RECIPES / "custom" / "base.yaml"],
            ["--tokenizer.min_documents=2", "--tokenizer.pretokenization=multiword"],
        )
