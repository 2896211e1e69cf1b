# SPDX-License-Identifier: Apache-2.0
"""Take the tokenizer of a model that exists, such that its tokens spell each document byte for byte.

Some tokenizers put a space before a text, or drop the spaces beside an added token. Then tokens and bytes of a text do
not agree, and a long text cannot be encoded piece by piece. The run's tokenizer leaves these steps out; the ids of all
tokens stay. refuse_changed_text refuses what loses text in another way.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from recipe_config import RecipeError


GENERIC_CLASS = "PreTrainedTokenizerFast"  # runs tokenizer.json as it is; the classes of families build their own
PROBES = ("The court", " a\u00e9 b", "12,500 12\n\n x", "  two  spaces ")


def exact_tokenizer(wrapped: PreTrainedTokenizerBase, where: str) -> tuple[Tokenizer, list[str]]:
    """Return a copy of a tokenizer without the steps that change a text, and a sentence about each of these.

    Raises: RecipeError: the tokenizer has no token for some bytes.
    """
    content = json.loads(wrapped.backend_tokenizer.to_str())
    changes = []
    steps = parts(content["normalizer"], "normalizers")
    kept = [step for step in steps if step["type"] != "Prepend"]
    content["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    prefixed = len(kept) < len(steps)
    for step in parts(content["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace" and step["prepend_scheme"] != "never":
            step["prepend_scheme"], prefixed = "never", True
        if step["type"] == "ByteLevel" and step["add_prefix_space"]:
            step["add_prefix_space"], prefixed = False, True
    if prefixed:
        changes.append("it puts no space before a text")
        steps = parts(content["decoder"], "decoders")
        for step in steps:
            if step["type"] == "Metaspace":
                step["prepend_scheme"] = "never"
        content["decoder"] = {"type": "Sequence", "decoders": [step for step in steps if step["type"] != "Strip"]}
    stripping = [token for token in content["added_tokens"] if not token["special"]]
    stripping = [token for token in stripping if token["lstrip"] or token["rstrip"]]
    for token in stripping:
        token["lstrip"] = token["rstrip"] = False
    if stripping:
        names = ", ".join(token["content"] for token in stripping[:3])
        changes.append(f"it keeps the spaces beside {names}")
    byte_level = any(step["type"] == "ByteLevel" for step in parts(content["pre_tokenizer"], "pretokenizers"))
    if not byte_level and not content["model"].get("byte_fallback"):
        raise RecipeError(
            f"{where} is neither byte-level nor has it tokens for single bytes, so it loses text; choose another"
        )
    return Tokenizer.from_str(json.dumps(content)), changes


def parts(step: dict | None, key: str) -> list[dict]:
    """Return the parts of a step of tokenizer.json that may be a sequence."""
    if step is None:
        return []
    return step[key] if step["type"] == "Sequence" else [step]


def save_taken(
    wrapped: PreTrainedTokenizerBase, tokenizer: Tokenizer, folder: Path, config: PreTrainedConfig, where: str
) -> None:
    """Write a tokenizer with the names and the chat template of the one that it was made from.

    Args:
        wrapped: the original.
        tokenizer: of exact_tokenizer.
        folder: to write into.
        config: of the model of the run, beside which AutoTokenizer may choose a class of the family's own.
        where: the place of the original, for the message.

    Raises: RecipeError: AutoTokenizer would encode text in another way than the tokenizer.
    """
    wrapped.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("add_prefix_space", "auto_map", "legacy"):
        settings.pop(name, None)
    settings["tokenizer_class"] = GENERIC_CLASS
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    again = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    for text in PROBES:
        found = again(text, add_special_tokens=False)["input_ids"]
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise RecipeError(
                f"{where}: AutoTokenizer encodes {text!r} as {found}, and its tokenizer.json as {expected}; choose "
                "another"
            )
