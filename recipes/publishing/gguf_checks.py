# SPDX-License-Identifier: Apache-2.0
"""Check a GGUF file before it is released: tokens and tensors read back, and what llama.cpp itself makes of it.

transformers reads the file with its own code: it must give the tokens of AutoTokenizer on hostile and on real text,
and the tensors of the safetensors, rounded as the file's type rounds. Where xllamacpp is installed, which brings
llama.cpp itself, llama.cpp gives the tokens of the same texts, scores one and continues it.
"""

import importlib.util
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import httpx2
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.reader import read_gguf_metadata

from recipe_config import RecipeError
from vocabulary.round_trip import CORNER_CASES, fuzz


REAL_BYTES = 10_000_000
SCORED_TOKENS, NEW_TOKENS = 64, 16
SECONDS_AN_ANSWER = 120.0
# Of the bits per byte by llama.cpp beside transformers'. llama.cpp computes with rounded activations as well.
TOLERANCES = {"f16": 0.002, "q8_0": 0.02}
# llama.cpp reads 's as a contraction in ASCII alone, the published expression with any form of the letter s.
LONG_S = "'\u017f"


def hostile_texts(tokenizer: Tokenizer) -> list[str]:
    """Return corner cases, fuzzed texts, and control tokens spelled out in text."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = [*CORNER_CASES.values(), *special, *(f"a {token}b{token}" for token in special)]
    return texts + [text for kind in ("code points", "bytes as Latin-1", "bytes read as UTF-8") for text in fuzz(kind)]


def check_gguf(folder: Path, path: Path, kind: str, texts: Sequence[str]) -> dict:
    """Check one file against the model in a folder.

    Args:
        folder: with config.json, safetensors and tokenizer files.
        path: of the file.
        kind: f16 or q8_0.
        texts: real text; the first REAL_BYTES are read.

    Returns: what was checked, by which program.

    Raises: RecipeError: it says what differs.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    real, left = [], REAL_BYTES
    for text in texts:
        real, left = [*real, text[:left]], left - len(text.encode())
        if left <= 0:
            break
    texts = hostile_texts(tokenizer.backend_tokenizer) + real
    expected = encode(tokenizer, texts)
    with alone(path) as file:
        read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if read_gguf_metadata(str(path))[0]["tokenizer.ggml.pre"] == "smollm":  # which transformers takes for gpt-2
        read.backend_tokenizer.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    found = encode(read, texts)
    refuse_other_tokens(path, "transformers", texts, expected, found)
    check_tensors(folder, path, kind)
    checked = {"transformers": f"{version('transformers')}: tokens of {len(texts):,} texts, and every tensor"}
    if importlib.util.find_spec("xllamacpp") is not None:
        checked["llama.cpp"] = check_llama_cpp(folder, path, kind, texts, expected)
    return checked


@contextmanager
def alone(path: Path) -> Iterator[Path]:
    """Yield the file in a folder of its own: beside a tokenizer.json transformers would read that instead."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.absolute())
        yield Path(folder) / path.name


def encode(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts in which a control token is text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]


def refuse_other_tokens(path: Path, program: str, texts: Sequence[str], expected: list, found: list) -> None:
    """Raises: RecipeError: the tokens of a text differ."""
    for text, right, wrong in zip(texts, expected, found, strict=True):
        if right != wrong:
            place = next((n for n, pair in enumerate(zip(right, wrong, strict=False)) if pair[0] != pair[1]), 0)
            raise RecipeError(
                f"{path}: {program} encodes {ascii(text[:60])} as {wrong[place : place + 5]} at token {place}, "
                f"AutoTokenizer as {right[place : place + 5]}; leave hub.gguf out"
            )


@torch.no_grad()
def check_tensors(folder: Path, path: Path, kind: str) -> None:
    """Compare every tensor with the safetensors'. Raises: RecipeError: one differs by more than its rounding."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    with alone(path) as file:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        config.head_dim = model.config.head_dim  # which transformers reads of a Llama only
        written = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=torch.float32
        )
    original, written = model.state_dict(), written.state_dict()
    if original.keys() != written.keys():
        raise RecipeError(f"{path}: other tensors than in {folder}: {sorted(original.keys() ^ written.keys())}")
    for name, tensor in original.items():
        error = (tensor - written[name]).abs()
        bound = torch.zeros_like(tensor) if tensor.dim() == 1 else rounding(tensor, kind)
        if tensor.shape != written[name].shape or not (error <= bound).all():
            raise RecipeError(f"{path}: tensor {name} differs by {error.max():.3g}, more than {kind} rounds it")


def rounding(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """Return how much each weight may differ: half a step of the type."""
    half_precision = tensor.abs() * 2**-11 + 2**-25
    if kind == "f16" or tensor.shape[-1] % 32:
        return half_precision
    largest = tensor.unflatten(-1, (-1, 32)).abs().amax(-1).repeat_interleave(32, -1)
    # The scale itself is in half precision, and a weight is up to 127 times it.
    return largest / 127 / 2 + largest * 2**-11 + 2**-24 * 127


def check_llama_cpp(folder: Path, path: Path, kind: str, texts: Sequence[str], expected: list) -> str:
    """Encode, score and continue text by llama.cpp. Raises: RecipeError: tokens or bits per byte differ."""
    kept = [n for n, text in enumerate(texts) if LONG_S not in text and is_assigned(text)]
    texts, expected = [texts[n] for n in kept], [expected[n] for n in kept]
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    tokens = [model.config.bos_token_id, *max(expected[-100:], key=len)]
    tokens = tokens[: min(SCORED_TOKENS, model.config.max_position_embeddings)]
    with llama_cpp_server(path, len(tokens) + NEW_TOKENS) as ask:
        as_text = {"add_special": False, "parse_special": False}
        found = [ask("/tokenize", content=text, **as_text)["tokens"] for text in texts]
        refuse_other_tokens(path, "llama.cpp", texts, expected, found)
        shown = ask("/tokenize", content="a", **as_text)["tokens"][0]
        scores = [
            next_log_probability(ask, tokens[:n], tokens[n], shown, model.config.vocab_size)
            for n in range(1, len(tokens))
        ]
        loss = -mean(scores)
        generated = ask("/completion", prompt=tokens[: len(tokens) // 2], n_predict=NEW_TOKENS, temperature=0)
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    right_loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:])).item()
    if not abs(loss - right_loss) <= TOLERANCES[kind] * right_loss:
        raise RecipeError(
            f"{path}: llama.cpp scores text {loss / right_loss - 1:+.2%} beside transformers, more than "
            f"{TOLERANCES[kind]:.1%}; leave hub.gguf out"
        )
    return (
        f"xllamacpp {version('xllamacpp')}: tokens of {len(texts):,} texts, bits per byte "
        f"{loss / right_loss - 1:+.3%} beside transformers on {len(tokens)} tokens, "
        f"{generated['tokens_predicted']} tokens generated"
    )


@contextmanager
def llama_cpp_server(path: Path, context_length: int) -> Iterator[Callable[..., dict]]:
    """Yield a function that asks llama.cpp's own server, on the loopback address while the block runs."""
    import xllamacpp  # only here: an optional package

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(path), context_length, 1
    settings.verbosity, settings.warmup = 0, False
    server = xllamacpp.Server(settings)
    with httpx2.Client(base_url=server.listening_address, trust_env=False, timeout=SECONDS_AN_ANSWER) as client:

        def ask(place: str, **question: object) -> dict:
            answer = client.post(place, json=question)
            if answer.status_code != 200:
                raise RecipeError(f"{path}: llama.cpp cannot run it: {answer.text[:200]}; leave hub.gguf out")
            return answer.json()

        yield ask
    del server


def next_log_probability(
    ask: Callable[..., dict], before: list[int], token: int, shown: int, vocab_size: int
) -> float:
    """Return the log of the probability that llama.cpp gives to a token after others.

    Args: shown: a token that is a whole character.
    """
    question = {"prompt": before, "n_predict": 1, "n_probs": vocab_size, "temperature": 0, "cache_prompt": True}
    # A token that ends the text or is part of a character would come without probabilities; a bias of the choice does
    # not change them.
    answer = ask("/completion", **question, logit_bias=[[shown, 1e4]])
    return next(e["logprob"] for e in answer["completion_probabilities"][0]["top_logprobs"] if e["id"] == token)


def is_assigned(text: str) -> bool:
    """Return whether Python's version of Unicode has every character; tables of two programs differ in new ones."""
    return all(unicodedata.category(character) != "Cn" for character in text)
