# SPDX-License-Identifier: Apache-2.0
"""Convert a GGUF file of a Llama-style model into a model folder that evaluation and continued pretraining read.

In:  a .gguf file with the weights of a `llama` and a byte-level BPE of `gpt2` kind, quantised or not.
Out: --output: config.json, model.safetensors in float32, tokenizer files. The weights keep the rounding of the file.

    python -m pip install gguf==0.19.0    # transformers reads the weights with it
    python recipes/convert_gguf.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --output runs/smollm2
"""

import argparse
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.reader import read_gguf_metadata


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
# Names of llama.cpp; transformers reads each of them as ByteLevel.
PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
}


def check_gguf(path: Path) -> str:
    """Return the name of the file's pre-tokenizer.

    Raises: SystemExit: if the file is not GGUF, or has an architecture or a tokenizer that this script does not know.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SystemExit(f"convert_gguf: {path}: not a GGUF file")
    metadata, _ = read_gguf_metadata(str(path))
    known = {"general.architecture": ["llama"], "tokenizer.ggml.model": ["gpt2"], "tokenizer.ggml.pre": PRE_TOKENIZERS}
    for name, values in known.items():
        if metadata.get(name) not in values:
            raise SystemExit(f"convert_gguf: {path}: {name} is {metadata.get(name)!r}; known: {', '.join(values)}")
    return metadata["tokenizer.ggml.pre"]


def convert(path: Path, output: Path) -> None:
    name = check_gguf(path)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    del model.config.quantization_config  # the weights are plain float32 now; with it, save_pretrained refuses
    model.hf_quantizer = None
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.output)
