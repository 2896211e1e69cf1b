# SPDX-License-Identifier: Apache-2.0
"""Write a release's model as GGUF files, which llama.cpp, Ollama and LM Studio run.

In:   a folder with config.json, safetensors and tokenizer files; hub.gguf names the types of the weights.
Out:  <title>-f16.gguf and <title>-q8_0.gguf beside them, Modelfile for Ollama, and gguf.json: what was checked.

llama.cpp knows a byte-level tokenizer by the name of its pre-tokenization. NAMES has those whose expression here is
letter for letter that of llama.cpp; any other tokenizer is refused, since its text would be split otherwise there.
"""

import importlib.util
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from publishing.gguf_checks import check_gguf
from recipe_config import Recipe, RecipeError
from vocabulary.pretokenization import LOOKED_UP_WHOLE, PATTERNS


INSTALL = "pip install gguf==0.19.0"
TO_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
GPT_2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# Of llama.cpp: pre-tokenization -> its steps, as in tokenizer.json.
NAMES = {
    **{
        name: [
            {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False},
            TO_BYTES,
        ]
        for name in ("qwen2", "qwen35", "llama-bpe")
    },
    "gpt-2": [GPT_2],
    "smollm": [{"type": "Digits", "individual_digits": True}, GPT_2],
}
MODEL_TYPES = ("llama", "qwen3")  # of transformers, and llama.cpp's names of the same
BLOCK = 32  # weights of a row that share a scale in q8_0


def refuse_unwritable(folder: Path) -> str:
    """Return llama.cpp's name of the tokenizer's pre-tokenization.

    Raises: RecipeError: the package is missing, or llama.cpp has no such tokenizer or model.
    """
    if importlib.util.find_spec("gguf") is None:
        raise RecipeError(f"hub.gguf: the package gguf is not installed; {INSTALL}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in MODEL_TYPES:
        raise RecipeError(
            f"hub.gguf: {folder} is a model of type {config['model_type']!r}; only {' and '.join(MODEL_TYPES)} are "
            "written; leave hub.gguf out"
        )
    stretched = config["rope_parameters"]["rope_type"] == "llama3"
    if config["model_type"] == "qwen3" and (
        config.get("attention_bias") or config.get("use_sliding_window") or stretched
    ):
        raise RecipeError(
            f"hub.gguf: {folder / 'config.json'}: llama.cpp has no qwen3 with attention_bias, use_sliding_window or "
            "rope_type llama3; leave hub.gguf out"
        )
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    kind = content["model"].get("type")
    if kind != "BPE":
        raise RecipeError(
            f"hub.gguf: llama.cpp has no byte-level {kind}; train the tokenizer with tokenizer.algorithm=bpe, or "
            "leave hub.gguf out"
        )
    if not content["model"]["merges"]:
        raise RecipeError(f"hub.gguf: {folder / 'tokenizer.json'} has no merges, which GGUF needs; leave hub.gguf out")
    remedy = "train the tokenizer with tokenizer.pretokenization=qwen2, continue another base, or leave hub.gguf out"
    steps = content["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    name = next((name for name, known in NAMES.items() if known == steps), None)
    if name is None:
        ours = [style for style, pattern in PATTERNS.items() if pattern == steps[0].get("pattern", {}).get("Regex")]
        raise RecipeError(
            f"hub.gguf: llama.cpp has no pre-tokenization {ours[0] if ours else 'as in tokenizer.json'}; {remedy}"
        )
    if content["normalizer"] is not None:
        raise RecipeError(f"hub.gguf: the tokenizer changes text before it splits it, llama.cpp does not; {remedy}")
    if bool(content["model"].get("ignore_merges")) != (name in LOOKED_UP_WHOLE):
        raise RecipeError(
            f"hub.gguf: the tokenizer looks up whole pieces, as after tokenizer.extend_by, or does not; with {name} "
            f"llama.cpp does the other; {remedy}"
        )
    return name


def write_gguf(folder: Path, path: Path, kind: str, recipe: Recipe) -> None:
    """Write the model in a folder to a file, one tensor in memory at a time.

    Args:
        folder: that refuse_unwritable accepts.
        path: of the file.
        kind: f16 or q8_0, of the matrices; vectors are float32.
        recipe: of the release: licence, languages, owner, base.

    Raises: RecipeError: the disk is full.
    """
    import gguf  # only here: an optional package

    types = gguf.GGMLQuantizationType
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = config["model_type"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_description(writer, recipe)
    add_shape(writer, config)
    add_tokenizer(writer, AutoTokenizer.from_pretrained(folder, local_files_only=True), folder, config)
    tensors = dict(stored_tensors(folder))
    layout = {}
    for name, (file, shape) in tensors.items():
        matrix = types.Q8_0 if kind == "q8_0" and shape[-1] % BLOCK == 0 else types.F16
        number = types.F32 if len(shape) == 1 else matrix
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise RecipeError(f"hub.gguf: {file}: tensor {name} has no name in llama.cpp; leave hub.gguf out")
        layout[name] = number
        size = gguf.quant_shape_to_byte_shape(shape, number) if number == types.Q8_0 else shape
        dtype = {types.F32: np.float32, types.F16: np.float16, types.Q8_0: np.uint8}[number]
        writer.add_tensor_info(new_name, size, np.dtype(dtype), math.prod(size) * np.dtype(dtype).itemsize, number)
    factors = llama_3_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (file, _) in tensors.items():
            with safe_open(file, framework="pt") as stored:
                tensor = order_for_rope(name, stored.get_tensor(name).float(), config)
            writer.write_tensor_data(gguf.quants.quantize(tensor.numpy(), layout[name]))
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()
    except OSError as error:
        path.unlink(missing_ok=True)
        raise RecipeError(f"{path}: cannot be written: {error.strerror or error}; make room there") from error


def stored_tensors(folder: Path) -> Iterator[tuple[str, tuple[Path, list[int]]]]:
    """Yield the name, file and shape of each tensor of a model folder."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118, not a mapping
                yield name, (file, stored.get_slice(name).get_shape())


def order_for_rope(name: str, tensor: torch.Tensor, config: dict) -> torch.Tensor:
    """Reorder the rows of Llama's query or key matrix: llama.cpp turns neighbours, transformers the halves of a head.

    Of Qwen 3 both turn the halves.
    """
    if config["model_type"] != "llama" or (".q_proj." not in name and ".k_proj." not in name):
        return tensor
    heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def llama_3_factors(config: dict) -> np.ndarray | None:
    """Return what rope_type: llama3 divides each frequency by; None for other types."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return None
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), "cpu")
    width = config["head_dim"]
    frequencies = rope["rope_theta"] ** -(torch.arange(0, width, 2).float() / width)
    return (frequencies / stretched).numpy().astype(np.float32)


def add_description(writer, recipe: Recipe) -> None:
    """Write the name, licence, languages, owner and base of a model."""
    hub, title = recipe.hub, Path(recipe.hub.repo_id or recipe.run.output_dir).absolute().name
    writer.add_type("model")
    writer.add_name(title)
    writer.add_license(hub.shown_license)
    writer.add_languages(hub.language)
    writer.add_tags(["text-generation", *dict.fromkeys(source.label for source in recipe.data.sources)])
    if hub.repo_id:
        writer.add_author(hub.repo_id.split("/")[0])
        writer.add_organization(hub.repo_id.split("/")[0])
        writer.add_repo_url(f"https://huggingface.co/{hub.repo_id}")
    if recipe.model.from_pretrained:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, Path(recipe.model.from_pretrained).name)


def add_shape(writer, config: dict) -> None:
    """Write the shape of a model and the rotation of its positions."""
    import gguf

    rope = config["rope_parameters"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def add_tokenizer(writer, tokenizer: PreTrainedTokenizerBase, folder: Path, config: dict) -> None:
    """Write the vocabulary by id, the merges, and what the tokenizer puts around a text."""
    import gguf

    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    added = tokenizer.added_tokens_decoder
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    kinds = gguf.TokenType
    numbers = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(refuse_unwritable(folder))
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in numbers])
    writer.add_token_types(
        [
            kinds.UNUSED
            if number not in tokens
            else kinds.NORMAL
            if number not in added
            else kinds.CONTROL
            if added[number].special
            else kinds.USER_DEFINED
            for number in numbers
        ]
    )
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids[0] == config["bos_token_id"])
    writer.add_add_eos_token(ids[-1] == config["eos_token_id"])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def build_gguf(recipe: Recipe, folder: Path, texts: Iterable[str]) -> None:
    """Write and check the files of hub.gguf, Modelfile and gguf.json in a release folder.

    Args:
        recipe: of the release, with the paths as published.
        folder: the release, with the model in it.
        texts: held-out documents, to compare tokens on.

    Raises: RecipeError: a file cannot be written, or is not the model.
    """
    pre_tokenizer, texts = refuse_unwritable(folder), list(texts)
    title = Path(recipe.hub.repo_id or recipe.run.output_dir).absolute().name
    files = {}
    for kind in recipe.hub.gguf:
        path = folder / f"{title}-{kind}.gguf"
        write_gguf(folder, path, kind, recipe)
        files[path.name] = {"weights": kind, "checked": check_gguf(folder, path, kind, texts)}
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    start = config["bos_token_id"]
    start = "" if tokenizer("a")["input_ids"][0] == start else tokenizer.convert_ids_to_tokens(start)
    if tokenizer.chat_template is None:
        # Without a template Ollama would guess one for chat. It adds no start token where the file says so.
        modelfile = f'FROM ./{next(iter(files))}\nTEMPLATE """{start}{{{{ .Prompt }}}}"""\n'
    else:
        modelfile = f"FROM ./{next(iter(files))}\n"
    (folder / "Modelfile").write_text(modelfile, encoding="utf-8")
    content = {"pre_tokenizer": pre_tokenizer, "files": files}
    (folder / "gguf.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def gguf_bytes(folder: Path, kinds: Sequence[str]) -> int:
    """Return about how large the files of a model folder would be."""
    weights = sum(math.prod(shape) for _, (_, shape) in stored_tensors(folder))
    return sum(int(weights * {"f16": 2, "q8_0": 34 / 32}[kind]) for kind in kinds)
