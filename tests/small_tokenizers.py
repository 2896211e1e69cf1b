# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of the kinds that families have, trained on made-up text."""

import json

from tiny_run import make_text
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


BOS, EOS, SPACE = "<s>", "</s>", "\u2581"
CHAT = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
TEXTS = [make_text(seed) for seed in range(20)]


def adds_bos(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )


def byte_level(split: str | None = None, special: tuple[str, ...] = (EOS, BOS)) -> Tokenizer:
    """Return a byte-level BPE, split as GPT-2 does or by a pattern."""
    tokenizer = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    parts = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, by_bytes]) if parts else by_bytes
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def sentencepiece(prefix: str | None) -> Tokenizer:
    """Return a BPE of SentencePiece's kind with a token for each byte.

    Args:
        prefix: how a space is put before a text: "normalizer" as in Llama 2, "metaspace" as in Mistral, or None as in
            Gemma.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    special = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.train_from_iterator(TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    # The bytes are tokens of the model, as in real files, and not added ones.
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    start = [normalizers.Prepend(SPACE)] if prefix == "normalizer" else []
    tokenizer.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = None
    if prefix == "metaspace":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    adds_bos(tokenizer)
    return tokenizer


def wrap(tokenizer: Tokenizer, **names) -> PreTrainedTokenizerFast:
    names = {"bos_token": BOS, "eos_token": EOS} | names
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def gpt2() -> PreTrainedTokenizerFast:
    """One token begins and ends a document, and none is added."""
    tokenizer = byte_level(special=("<|endoftext|>",))
    return wrap(tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>")


def llama3() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(LLAMA3_SPLIT)
    adds_bos(tokenizer)
    return wrap(tokenizer, chat_template=CHAT)


def qwen() -> PreTrainedTokenizerFast:
    """There is no bos, and characters are composed."""
    tokenizer = byte_level(LLAMA3_SPLIT, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.normalizer = normalizers.NFC()
    return wrap(tokenizer, bos_token=None, eos_token="<|endoftext|>", chat_template=CHAT)


def pythia() -> PreTrainedTokenizerFast:
    """Runs of spaces are added tokens, and characters are composed."""
    tokenizer = byte_level(special=("<|endoftext|>",))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * size, normalized=True) for size in (2, 4)])
    return wrap(tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def phi3() -> PreTrainedTokenizerFast:
    """An added token that is not special takes the spaces after it."""
    tokenizer = sentencepiece("normalizer")
    tokenizer.add_tokens([AddedToken("<|note|>", rstrip=True, normalized=False)])
    return wrap(tokenizer, unk_token="<unk>")


KINDS = {
    "GPT-2": gpt2,
    "Llama 3": llama3,
    "Qwen": qwen,
    "Pythia": pythia,
    "Llama 2": lambda: wrap(sentencepiece("normalizer"), unk_token="<unk>"),
    "Mistral": lambda: wrap(sentencepiece("metaspace"), unk_token="<unk>"),
    "Gemma": lambda: wrap(sentencepiece(None), unk_token="<unk>", chat_template=CHAT),
    "Phi-3": phi3,
}
