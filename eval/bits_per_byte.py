# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of documents under a causal language model, and of xz on the same text.

In:  a model folder or Hub id, or several; and texts: .txt files (one document each) or .parquet files with a `text`
     column.
Out: a table on the terminal, one line a file. run_eval.py uses the same functions for a whole run.

    python eval/bits_per_byte.py --model runs/legal-quickstart/model contract.txt
    python eval/bits_per_byte.py --model HuggingFaceTB/SmolLM2-135M --xz runs/legal-quickstart/documents/test/*/*
    python eval/bits_per_byte.py --model runs/mine/members/0/model --model runs/mine/members/1/model contract.txt

The model reads every document after the token that starts a document (bos, or eos if the tokenizer has no bos). Each
token of the text is predicted exactly once, and the end-of-text token is not scored: the sum is the cost of the text
alone, under any tokenizer.
"""

import argparse
import itertools
import logging
import lzma
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from safetensors import safe_open
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutput

from limits import NotScored, run_script


logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PIECE_BYTES = 2**20  # a text is tokenized in pieces of at most this many bytes
MOST_LAYERS = 1000
PACKED = 16  # parameters in one number of a file, at most: quantized weights are packed
SAVED_FOLDER = "a folder that save_pretrained wrote"
LOGITS_PER_BATCH = 2**28  # at once: 1 GiB in float32
XZ_PRESET = 9 | lzma.PRESET_EXTREME
XZ_DICTIONARY_BYTES = 64 * 2**20  # of preset 9


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """Convert summed cross-entropy to bits per UTF-8 byte, which is comparable across tokenizers.

    bits per byte = total_nats / ln 2 / total_bytes

    Args:
        total_nats: summed token losses, in nats.
        total_bytes: UTF-8 bytes of the scored text, without special tokens.

    Raises: ValueError: if total_bytes is not positive.
    Source: Gao et al., The Pile, section 3.1 (https://huggingface.co/papers/2101.00027).
    """
    if total_bytes <= 0:
        raise ValueError(f"total_bytes={total_bytes}: bits per byte needs text of at least one byte")
    return total_nats / math.log(2) / total_bytes


def load_model(
    name: str, revision: str | None = None, dtype: str = "float32", device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal model and its tokenizer from a folder or the Hub, onto a GPU if there is one.

    Reads only safetensors and runs no code that comes with a model.

    Raises: ValueError: if a file cannot be read, or a tensor is missing, unexpected or of another shape. transformers
        would fill it with random numbers and only warn.
    """
    given = {"revision": revision, "trust_remote_code": False}  # None would ask on the terminal
    try:
        config = AutoConfig.from_pretrained(name, **given)
        refuse_own_code(name, config)
        refuse_other_size(name, config)
        model, loading = AutoModelForCausalLM.from_pretrained(
            name,
            **given,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # listed below with the others
            output_loading_info=True,
        )
        refuse_other_tensors(name, loading)
        tokenizer = AutoTokenizer.from_pretrained(name, **given)
    except (OSError, ValueError, RuntimeError, MemoryError):
        raise
    except Exception as error:  # safetensors and tokenizers raise others on a damaged file, a config on an odd value
        kind = type(error).__name__
        raise ValueError(f"{name}: its files cannot be read: {kind}: {error}; {SAVED_FOLDER} can be") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def refuse_own_code(name: str, config: PreTrainedConfig) -> None:
    """Refuse a config that names a class that transformers lacks: it would score its own in that one's place.

    Raises: ValueError
    """
    mapped = (getattr(config, "auto_map", None) or {}).values()
    named = [one.rpartition(".")[2] for one in mapped if isinstance(one, str)] + (config.architectures or [])
    own = [one for one in named if not hasattr(transformers, one)]
    if own:
        raise ValueError(
            f"{name}: config.json names code of its own, {own[0]}, in auto_map or architectures, and no such code is "
            "run; score a model that transformers builds itself"
        )


def refuse_other_size(name: str, config: PreTrainedConfig) -> None:
    """Refuse a config of a far larger model than the weights are, which would take hours or all memory to build.

    Args:
        name: of a folder, or a Hub id, of which only the number of layers is looked at.
        config: its own.

    Raises: ValueError
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    if layers > MOST_LAYERS:
        raise ValueError(f"{name}: config.json names {layers:,} layers; up to {MOST_LAYERS:,} are built")
    if not Path(name).is_dir():
        return
    held = 0
    for path in Path(name).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            held += sum(math.prod(file.get_slice(tensor).get_shape()) for tensor in file.keys())  # noqa: SIM118
    try:
        with torch.device("meta"):
            described = AutoModelForCausalLM.from_config(config, trust_remote_code=False).num_parameters()
    except (RuntimeError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{name}: no model is as config.json says: {error}") from error
    if described > PACKED * held:
        raise ValueError(
            f"{name}: config.json describes {described:,} parameters, its safetensors hold {held:,} numbers; "
            f"use {SAVED_FOLDER}"
        )


def refuse_other_tensors(name: str, loading: dict[str, set]) -> None:
    """Refuse weights that transformers filled up or left out. Raises: ValueError."""
    problems = [
        f"{kind.removesuffix('_keys')}: {', '.join(sorted(map(str, loading[kind]))[:5])} ({len(loading[kind])} in all)"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if loading[kind]
    ]
    if problems:
        raise ValueError(
            f"{name}: the weights do not fit the model that config.json describes; "
            f"{'; '.join(problems)}; use {SAVED_FOLDER}"
        )


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that starts a document: bos, or eos if there is no bos. Raises: NotScored: there is neither."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise NotScored(
        "the tokenizer has neither a bos nor an eos token, so no token can start a document; name one as eos_token in "
        "tokenizer_config.json"
    )


def text_pieces(text: str, max_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """Split a text into pieces of at most max_bytes UTF-8 bytes, after a newline if a piece has one."""
    data = text.encode()
    begin = 0
    while begin < len(data):
        end = begin + max_bytes
        if end < len(data):
            newline = data.rfind(b"\n", begin, end)
            if newline >= 0:
                end = newline + 1
            else:
                while data[end] & 0xC0 == 0x80:  # the middle of a character
                    end -= 1
        yield data[begin:end].decode()
        begin = end


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[np.ndarray, bool]:
    """Tokenize a text without special tokens: a `<|endoftext|>` in it is thirteen characters.

    Returns: the token ids, int32, and whether they decode back to exactly this text. They do not if the tokenizer
        drops or changes characters (an unknown token, lower-casing) or adds special tokens anyway.
    """
    special = set(tokenizer.all_special_ids)
    pieces, restored = [], True
    for piece in text_pieces(text):
        ids = tokenizer(piece, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        pieces.append(np.asarray(ids, dtype=np.int32))
        restored &= tokenizer.decode(ids, clean_up_tokenization_spaces=False) == piece and special.isdisjoint(ids)
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32), restored


def sliding_windows(num_tokens: int, context_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield windows (begin, end, scored) over the sequence [start token, *tokens].

    Reading positions begin to end - 1 of it predicts tokens begin to end - 1; the last `scored` of them count. The
    first window scores all of its tokens. Each later one advances by stride tokens, so that every token it scores is
    predicted from more than context_length - stride others.
    """
    end = min(num_tokens, context_length)
    yield 0, end, end
    while end < num_tokens:
        next_end = min(end + stride, num_tokens)
        yield next_end - context_length, next_end, next_end - end
        end = next_end


@dataclass
class DocumentScore:
    """Cost of one document.

    Attributes:
        nats: summed token losses.
        bytes: of the text, UTF-8.
        tokens: without special tokens.
        restored: whether the tokens decode back to the text.
    """

    nats: float
    bytes: int
    tokens: int
    restored: bool


def score_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    context_length: int,
    stride: int | None = None,
    batch_size: int = 8,
    description: str | None = "scoring",
) -> list[DocumentScore]:
    """Score texts: one result for each, in their order.

    A text longer than the context is read in overlapping windows. The default stride, half the context, comes from
    BloombergGPT, section 5.2 (https://huggingface.co/papers/2303.17564).

    Args:
        model: in evaluation mode. Losses are computed in its dtype and summed in float64.
        tokenizer: the model's.
        texts: the documents; an empty one costs nothing.
        context_length: tokens that the model reads at most, including the start token.
        stride: tokens between the windows over a long text, 1 to context_length.
        batch_size: windows read at once; fewer if their logits would take more than 1 GiB.
        description: label of the progress bar; None hides it.

    Raises: ValueError: for a stride out of range. NotScored: for a loss that is not finite.
    """
    stride = max(1, context_length // 2) if stride is None else stride
    if not 1 <= stride <= context_length:
        raise ValueError(f"stride={stride} must be between 1 and context_length={context_length}")
    start = start_token_id(tokenizer)
    scores = [DocumentScore(nats=0.0, bytes=len(text.encode()), tokens=0, restored=True) for text in texts]

    def windows() -> Iterator[tuple[int, np.ndarray, int]]:
        """Yield (document, sequence to read with one more token to predict, tokens to score)."""
        for index, text in enumerate(texts):
            tokens, scores[index].restored = encode_text(tokenizer, text)
            scores[index].tokens = len(tokens)
            sequence = np.concatenate([np.array([start], dtype=np.int32), tokens])
            if len(tokens):
                for begin, end, scored in sliding_windows(len(tokens), context_length, stride):
                    yield index, sequence[begin : end + 1], scored

    vocab_size = model.config.get_text_config().vocab_size
    # Sorting a pool of windows by length leaves little padding; a pool at a time bounds the memory.
    stream = windows()
    total = sum(score.bytes for score in scores)
    with tqdm(total=total, desc=description, unit="B", unit_scale=True, disable=description is None) as progress:
        while pool := list(itertools.islice(stream, 64 * batch_size)):
            pool.sort(key=lambda window: len(window[1]), reverse=True)
            while pool:
                longest = len(pool[0][1]) - 1
                rows = max(1, min(batch_size, LOGITS_PER_BATCH // (longest * vocab_size)))
                batch, pool = pool[:rows], pool[rows:]
                for (index, _, scored), nats in zip(batch, window_nats(model, batch), strict=True):
                    if not math.isfinite(nats):
                        raise NotScored.of_numbers(f"document {index}: the loss is {nats}", model.dtype)
                    scores[index].nats += nats
                    progress.update(round(scores[index].bytes * scored / scores[index].tokens))
    return scores


@torch.inference_mode()
def window_nats(model: PreTrainedModel, batch: list[tuple[int, np.ndarray, int]]) -> list[float]:
    """Return the summed loss in nats of the last `scored` tokens of each (document, sequence, scored)."""
    lengths = [len(sequence) - 1 for _, sequence, _ in batch]
    input_ids = np.zeros((len(batch), max(lengths)), dtype=np.int64)  # right padding never reaches a causal model
    for row, (_, sequence, _) in enumerate(batch):
        input_ids[row, : lengths[row]] = sequence[:-1]
    logits = model(input_ids=torch.from_numpy(input_ids).to(model.device), use_cache=False).logits
    nats = []  # logits: (rows, longest window, vocab_size)
    for row, (_, sequence, scored) in enumerate(batch):
        targets = torch.from_numpy(sequence[-scored:].astype(np.int64)).to(logits.device)
        predicted = logits[row, lengths[row] - scored : lengths[row]].float()  # (scored, vocab_size)
        losses = torch.nn.functional.cross_entropy(predicted, targets, reduction="none")
        nats.append(losses.double().sum().item())
    return nats


class Ensemble(torch.nn.Module):
    """Predicts the mean of what several models predict.

    Args: models: with the same tokenizer.

    Attributes: config, device, dtype: of the first.
    """

    def __init__(self, models: list[PreTrainedModel]):
        super().__init__()
        self.models = torch.nn.ModuleList(models)
        self.config, self.device, self.dtype = models[0].config, models[0].device, models[0].dtype

    def forward(self, **inputs) -> CausalLMOutput:
        """Return the logarithms of the mean probabilities as logits."""
        each = (model(**inputs).logits.float().log_softmax(-1) for model in self.models)
        return CausalLMOutput(logits=reduce(torch.logaddexp, each) - math.log(len(self.models)))


def load_models(names: list[str], revision: str | None, dtype: str) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Load a model, or several as one, and the tokenizer.

    Raises: ValueError: see load_model, or their tokenizers differ.
    """
    loaded = [load_model(name, revision, dtype) for name in names]
    models, tokenizers = zip(*loaded, strict=True)
    for name, tokenizer in zip(names, tokenizers, strict=True):
        if tokenizer.get_vocab() != tokenizers[0].get_vocab():
            raise ValueError(
                f"--model {name}: its tokens are not those of {names[0]}; models are averaged token by token"
            )
    return (models[0] if len(models) == 1 else Ensemble(list(models))), tokenizers[0]


def xz_bytes(data: bytes) -> int:
    """Return the size of the file that `xz -9e` writes.

    The dictionary is limited to the size of the data: the output is the same, without clearing 64 MiB each time.
    """
    dictionary = min(XZ_DICTIONARY_BYTES, max(4096, 1 << (len(data) - 1).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": XZ_PRESET, "dict_size": dictionary}]
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters))


def xz_baselines(held_out: list[bytes], training: Iterable[bytes] = ()) -> dict[str, int | None]:
    """Compress held-out documents with xz, which refers back to no, some or the same text as a model.

    Args:
        held_out: the documents.
        training: training documents, as many as fit xz's dictionary together with the held-out text.

    Returns: bytes. `xz_documents`: each document by itself, summed. `xz_stream`: all of them concatenated.
        `xz_primed`: the size that they add to the compressed training text, None if no training text fits.
    """
    stream = b"".join(held_out)
    room, pieces = XZ_DICTIONARY_BYTES - len(stream), []
    for document in training:
        if room <= 0:
            break
        pieces.append(document[:room])
        room -= len(document)
    primer = b"".join(pieces)
    return {
        "xz_documents": sum(xz_bytes(document) for document in held_out),
        "xz_stream": xz_bytes(stream),
        "xz_primed": xz_bytes(primer + stream) - xz_bytes(primer) if primer else None,
    }


def read_texts(path: Path) -> list[str]:
    """Return the documents of a .txt or a .parquet file."""
    if path.suffix == ".parquet":
        return pq.read_table(path, columns=["text"])["text"].to_pylist()
    return [path.read_text(encoding="utf-8")]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help=".txt (one document each) or .parquet with a text column")
    parser.add_argument(
        "--model", required=True, action="append", help="folder or Hub id; of several, the mean of their probabilities"
    )
    parser.add_argument("--revision", help="commit, tag or branch of a Hub id")
    parser.add_argument("--context_length", type=int, help="tokens; None: the model's max_position_embeddings")
    parser.add_argument("--stride", type=int, help="tokens; None: half the context")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--xz", action="store_true", help="also compress the documents with xz")
    arguments = parser.parse_args(argv)
    missing = [str(path) for path in arguments.files if not path.is_file()]
    if missing:
        raise SystemExit(f"no such file: {', '.join(missing)}")

    try:
        model, tokenizer = load_models(arguments.model, arguments.revision, arguments.dtype)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    lines = [f"{'documents':>10} {'bytes':>14} {'tokens':>14} {'model':>7} {'xz each':>8} {'xz all':>7}  file"]
    for path in arguments.files:
        texts = [text for text in read_texts(path) if text]
        scores = score_documents(
            model,
            tokenizer,
            texts,
            context_length=arguments.context_length or model.config.get_text_config().max_position_embeddings,
            stride=arguments.stride,
            batch_size=arguments.batch_size,
            description=path.name,
        )
        total_bytes = sum(score.bytes for score in scores)
        not_restored = sum(not score.restored for score in scores)
        if not_restored:
            logger.warning("%s: the tokens of %d documents do not decode back to the text", path, not_restored)
        sizes = xz_baselines([text.encode() for text in texts]) if arguments.xz else {}
        xz = [f"{8 * sizes[key] / total_bytes:.3f}" if sizes else "-" for key in ("xz_documents", "xz_stream")]
        value = bits_per_byte(sum(score.nats for score in scores), total_bytes)
        lines.append(
            f"{len(texts):>10,} {total_bytes:>14,} {sum(score.tokens for score in scores):>14,} "
            f"{value:>7.3f} {xz[0]:>8} {xz[1]:>7}  {path}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    run_script(main)
