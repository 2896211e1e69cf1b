# SPDX-License-Identifier: Apache-2.0
"""Load a tokenizer of any kind as a `tokenizers.Tokenizer`, so that all are measured in the same way.

    load_tokenizer("runs/legal/tokenizer")                      # a folder that AutoTokenizer loads
    load_tokenizer("mistralai/Mistral-7B-v0.1@<commit>")        # the Hub, at a commit or at the head
    load_tokenizer("tokenizer.json")                            # a file of `tokenizers`
    load_tokenizer("zip://mistral_common/data/tekken_240911.json::mistral_common-1.13.1-py3-none-any.whl")

A file is a tokenizer.json, a tekken.json (Mistral's list of tokens by rank), or a SentencePiece BPE model. It is named
by a path or an fsspec URL, which also reaches into a wheel or zip.
"""

import base64
import json
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from recipe_config import RecipeError, refuse_missing_folder


# Fields and values of sentencepiece_model.proto.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_KIND = 1, 2, 3
UNKNOWN, USER_DEFINED = 2, 4
TRAINER_MODEL, BPE_MODEL = 3, 2
TRAINER_BYTE_FALLBACK = 35
NORMALIZER_MAP, NORMALIZER_DUMMY_PREFIX, NORMALIZER_EXTRA_SPACES = 2, 3, 4
SPACE = "\u2581"


def load_tokenizer(where: str) -> Tokenizer:
    """Load a tokenizer from a folder, a file, an fsspec URL, or the Hub as `org/name` or `org/name@commit`.

    It neither truncates nor pads, and reads special tokens in text as the loaded tokenizer does.

    Raises: RecipeError: there is no file, or it is of no known kind.
    """
    path = Path(where)
    hub_id = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?", where)
    if path.is_dir() or (hub_id and not path.exists()):
        name, revision = (where, None) if path.is_dir() else hub_id.groups()
        refuse_missing_folder("tokenizer", name)
        try:
            wrapped = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
            tokenizer = wrapped.backend_tokenizer
        except (OSError, ValueError, AttributeError) as error:
            raise RecipeError(
                f"{where}: no tokenizer that the `tokenizers` library runs: {error}; "
                "name a folder or Hub repository with a tokenizer.json"
            ) from error
    else:
        try:
            with fsspec.open(where, "rb") as file:
                content = file.read()
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(f"{where}: no tokenizer can be read: {error!r}") from error
        tokenizer = read_tokenizer(content, where)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_others(places: Sequence[str]) -> dict[str, Tokenizer]:
    """Load tokenizers by the name for the card: that of the file, folder or repository, without the path to it.

    Raises: RecipeError: one cannot be loaded, or two have the same name.
    """
    names = [place.partition("::")[0].rstrip("/").rpartition("/")[2] for place in places]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"tokenizer.compare_with: two are named {', '.join(twice)}; rename one of them")
    return {name: load_tokenizer(place) for name, place in zip(names, places, strict=True)}


def read_tokenizer(content: bytes, where: str) -> Tokenizer:
    """Return the tokenizer of a file's content, of any of the three kinds."""
    try:
        if not content.lstrip().startswith(b"{"):
            return from_sentencepiece(content)
        parsed = json.loads(content)
        return (
            from_tekken(parsed) if "vocab" in parsed and "config" in parsed else Tokenizer.from_str(content.decode())
        )
    except Exception as error:  # `tokenizers` raises Exception itself
        raise RecipeError(
            f"{where}: neither a tokenizer.json nor a tekken.json nor a BPE model of SentencePiece: {error}"
        ) from error


def from_tekken(parsed: dict) -> Tokenizer:
    """Convert a parsed tekken.json. Special tokens keep their ids, and no text yields them."""
    config = parsed["config"]
    num_special = config["default_num_special_tokens"]
    ranked = parsed["vocab"][: config["default_vocab_size"] - num_special]
    special = [f"<SPECIAL_{index}>" for index in range(num_special)]
    for entry in parsed.get("special_tokens") or []:
        special[entry["rank"]] = entry["token_str"]
    return from_ranks([base64.b64decode(entry["token_bytes"]) for entry in ranked], config["pattern"], special)


def from_ranks(tokens: list[bytes], pattern: str, first_tokens: list[str]) -> Tokenizer:
    """Build a byte-level BPE from tiktoken's list of tokens.

    tiktoken joins the two neighbours that form the token of the lowest rank, and keeps a piece that is a token. It is
    equivalent to list every split of every token into two tokens as a merge, in the order of ranks.

    Args:
        tokens: in the order of their ranks, with every single byte.
        pattern: regular expression of the pre-tokenization.
        first_tokens: tokens before the ranked ones, which no text yields.
    """
    letters = bytes_to_unicode()
    known = set(tokens)

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {token: index for index, token in enumerate([*first_tokens, *map(spelled, tokens)])}
    merges = [
        (spelled(token[:cut]), spelled(token[cut:]))
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def from_sentencepiece(content: bytes) -> Tokenizer:
    """Convert a SentencePiece BPE model that changes no text, but may put a space before it.

    Control pieces keep their ids, and no text yields them, as in SentencePiece.

    Raises: ValueError: the model is of another kind.
    """
    fields = list(protobuf_fields(content))
    trainer, normalizer = (dict(protobuf_fields(dict(fields).get(number, b""))) for number in (TRAINER, NORMALIZER))
    if trainer.get(TRAINER_MODEL, 1) != BPE_MODEL:
        raise ValueError("not a BPE model; save it as tokenizer.json with transformers")
    if normalizer.get(NORMALIZER_MAP) or normalizer.get(NORMALIZER_EXTRA_SPACES, 1):
        raise ValueError("a model that changes characters or spaces; save it as tokenizer.json with transformers")
    pieces = [dict(protobuf_fields(value)) for number, value in fields if number == PIECES]
    texts = [piece[PIECE_TEXT].decode() for piece in pieces]
    kinds = [piece.get(PIECE_KIND, 1) for piece in pieces]
    scores = [struct.unpack("<f", piece.get(PIECE_SCORE, bytes(4)))[0] for piece in pieces]
    known = {text for text, kind in zip(texts, kinds, strict=True) if kind == 1}
    merges = [
        (texts[index][:cut], texts[index][cut:])
        for index in sorted(range(len(texts)), key=lambda index: -scores[index])
        if kinds[index] == 1
        for cut in range(1, len(texts[index]))
        if texts[index][:cut] in known and texts[index][cut:] in known
    ]
    tokenizer = Tokenizer(
        models.BPE(
            {text: index for index, text in enumerate(texts)},
            merges,
            unk_token=next((text for text, kind in zip(texts, kinds, strict=True) if kind == UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=bool(trainer.get(TRAINER_BYTE_FALLBACK, 0)),
        )
    )
    prefix = [normalizers.Prepend(SPACE)] if normalizer.get(NORMALIZER_DUMMY_PREFIX, 1) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    user_defined = [text for text, kind in zip(texts, kinds, strict=True) if kind == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in user_defined])
    return tokenizer


def protobuf_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protobuf message: an int for a varint, else the bytes.

    Raises: ValueError: the bytes are no such message.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            if position >= len(message) or shift > 63:
                raise ValueError("not a protobuf message")
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError("not a protobuf message")
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        if position + size > len(message):
            raise ValueError("not a protobuf message")
        yield number, message[position : position + size]
        position += size
