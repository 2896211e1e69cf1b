# SPDX-License-Identifier: Apache-2.0
"""Build the prompt for a document and generate its summary, the same in fine-tuning, evaluation and the page."""

import re
from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_config import Finetune


# For models without a chat template. The assistant's turn ends with the end-of-text token.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n' }}Assistant:{% endif %}"
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\"'])")
# More than any tokenizer in use averages on ordinary text. What lies beyond is truncated before it is tokenized.
MOST_CHARACTERS_PER_TOKEN = 16


def lead(document: str, sentences: int) -> str:
    """Return the first sentences of a document."""
    return " ".join(SENTENCE_END.split(document.strip())[:sentences])


def build_prompt(document: str, settings: Finetune, tokenizer: PreTrainedTokenizerBase) -> str | list[dict]:
    """Return the prompt for a document, truncated at its end so that the prompt and a summary fit together.

    Control tokens that the document spells are removed.
    """
    document = remove_control_tokens(document, tokenizer)
    around = len(encode(fill_template("", settings, tokenizer), tokenizer))
    room = settings.sequence_length - settings.max_summary_tokens - around
    document = document.strip()[: max(1, room) * MOST_CHARACTERS_PER_TOKEN]
    offsets = tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) > room:  # two tokens less: the first and the last may be split differently within the prompt
        document = document[: offsets[max(0, room - 2)][0]].rstrip()
    return fill_template(document, settings, tokenizer)


def remove_control_tokens(document: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a document without the tokenizer's special tokens.

    Removing one can join the parts of another, as in "<|endo<|endoftext|>ftext|>", so this repeats until none is left.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    control = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    while control.pattern and control.search(document):
        document = control.sub("", document)
    return document


def fill_template(document: str, settings: Finetune, tokenizer: PreTrainedTokenizerBase) -> str | list[dict]:
    if settings.template == "chat":
        return [{"role": "user", "content": f"{settings.instruction}\n\n{document}"}]
    begins = tokenizer.bos_token is not None and tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]
    return f"{tokenizer.bos_token if begins else ''}{document}\n\nSummary:"


def build_completion(summary: str, settings: Finetune) -> str | list[dict]:
    return [{"role": "assistant", "content": summary}] if settings.template == "chat" else f" {summary}"


def encode(prompt: str | list[dict], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


@torch.no_grad()
def summarise(
    documents: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Finetune,
    batch_size: int = 8,
    progress: str | None = None,
) -> list[str]:
    """Return the model's summary of each document, by greedy decoding."""
    prompts = [encode(build_prompt(document, settings, tokenizer), tokenizer) for document in documents]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    summaries = [""] * len(prompts)
    was_training = model.training
    model.eval()
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc=progress, unit=" batches", leave=False, disable=progress is None):
        chosen = order[start : start + batch_size]
        width = max(len(prompts[index]) for index in chosen)
        # Padded on the left, so that generation follows the prompt directly; the padding is masked.
        input_ids = torch.full((len(chosen), width), tokenizer.eos_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, index in enumerate(chosen):
            input_ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            attention_mask[row, width - len(prompts[index]) :] = 1
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            max_new_tokens=settings.max_summary_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        for row, index in enumerate(chosen):
            summaries[index] = tokenizer.decode(output[row, width:], skip_special_tokens=True).strip()
    model.train(was_training)
    return summaries
