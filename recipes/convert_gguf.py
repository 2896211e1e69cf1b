# SPDX-License-Identifier: Apache-2.0
"""Convert a GGUF file of a Llama-style model into a model folder that evaluation and continued pretraining read.

In:  a .gguf file with the weights of a `llama` and a byte-level BPE of `gpt2` kind, quantised or not.
Out: --output: config.json, model.safetensors in float32, tokenizer files. The weights keep the rounding of the file.
     README.md, a card with the licence and the base, which the card of a model that continues from it repeats.

    python -m pip install gguf==0.19.0    # transformers reads the weights with it
    python recipes/convert_gguf.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --output runs/smollm2
"""

import argparse
import re
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.reader import read_gguf_metadata

from card_text import render_card


HUB_LINK = r"https://huggingface\.co/([\w.-]+/[\w.-]+)"
UNQUANTISED = (0, 1, 32)  # general.file_type of float32, float16 and bfloat16
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
# Names of llama.cpp; transformers reads each of them as ByteLevel.
PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
}


def check_gguf(path: Path) -> dict:
    """Return the file's metadata.

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
    return metadata


def convert(path: Path, output: Path, licence: str | None = None, base_model: str | None = None) -> None:
    """Convert a file into a model folder.

    Args:
        path: of the file.
        output: the folder to write.
        licence: as the Hub spells it; None: what the file states, if it does.
        base_model: Hub id of the model that was made into the file; None: as for the licence.
    """
    metadata = check_gguf(path)
    model, report = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:  # they would be random
        raise SystemExit(
            f"convert_gguf: {path}: lacks {', '.join(sorted(report['missing_keys'])[:3])}; download it again"
        )
    del model.config.quantization_config  # the weights are plain float32 now; with it, save_pretrained refuses
    model.hf_quantizer = None
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    card = write_card(path.name, metadata, licence, base_model)
    (output / "README.md").write_text(card, encoding="utf-8")


def write_card(name: str, metadata: dict, licence: str | None, base_model: str | None) -> str:
    """Return the card of the folder: what the file's metadata state, and what they leave out."""
    link = re.fullmatch(HUB_LINK, str(metadata.get("general.base_model.0.repo_url")))
    licence, base_model = licence or metadata.get("general.license"), base_model or (link and link[1])
    quantised = metadata.get("general.file_type") not in UNQUANTISED
    front_matter = {"library_name": "transformers", "license": licence, "base_model": base_model}
    front_matter["base_model_relation"] = "quantized" if quantised else None
    tuned = (
        "has a chat template, so it was probably tuned to follow instructions"
        if (metadata.get("tokenizer.chat_template"))
        else "has no chat template"
    )
    return render_card(
        Path(__file__).parent / "publishing" / "converted_card.md",
        {key: value for key, value in front_matter.items() if value},
        name=name,
        model=metadata.get("general.name") or base_model or name,
        organization=metadata.get("general.organization"),
        licence=licence,
        quantised=quantised,
        tuned=tuned,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--license", help="as the Hub spells it, such as apache-2.0; default: what the file states")
    parser.add_argument("--base_model", help="Hub id of the model in the file; default: what the file states")
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.output, arguments.license, arguments.base_model)
