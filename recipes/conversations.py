# SPDX-License-Identifier: Apache-2.0
"""Instructions and conversations for fine-tuning: their rows, a chat template, tokens with the answers marked, scores.

A row has `messages`, a list of {"role", "content"}, or `prompt` and `completion`. Only the answers are learned: the
tokens of each assistant turn, with the one that ends it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jinja2 import TemplateError
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recipe_config import RecipeError, Source
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.units import list_units
from summaries import CHAT_TEMPLATE, remove_control_tokens


ROLES = ("system", "user", "assistant")
# Reserved tokens that were renamed to the roles say who speaks; the end-of-text token ends an answer.
ROLE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Messages = list[dict[str, str]]


def read_conversations(source: Source, limit: int | None) -> tuple[list[Messages], int]:
    """Return at most `limit` conversations of a source, and how many rows held none.

    Raises: RecipeError: no row holds one.
    """
    found, left_out = [], 0
    for unit in list_units(source):
        for row in read_unit(source, unit):
            messages = None if isinstance(row, Unreadable) else messages_of(row)
            if messages is None:
                left_out += 1
                continue
            found.append(messages)
            if len(found) == limit:
                return found, left_out
    if not found:
        raise RecipeError(
            f"finetune: {source.name}: none of {left_out} rows of {source.path} is a conversation that ends with an "
            "answer; give `messages`, a list of role (system, user, assistant) and content, or `prompt` and "
            "`completion`"
        )
    return found, left_out


def messages_of(row: dict) -> Messages | None:
    """Return the messages of a row; None where there are none, or the last is no answer."""
    messages, prompt, completion = (row.get(key) for key in ("messages", "prompt", "completion"))
    if isinstance(prompt, str) and isinstance(completion, str):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    elif messages is None and isinstance(prompt, list) and isinstance(completion, list):
        messages = prompt + completion
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    pairs = [(message.get("role"), message.get("content")) for message in messages]
    if not pairs or any(role not in ROLES or not isinstance(text, str) or not text.strip() for role, text in pairs):
        return None
    spoken = [role for role, _ in pairs if role != "system"]
    turns = ["user", "assistant"] * (len(spoken) // 2)
    if spoken != turns or not turns or "system" in [role for role, _ in pairs[1:]]:
        return None
    return [{"role": role, "content": text.strip()} for role, text in pairs]


def questions(messages: Messages) -> tuple[str, ...]:
    """Return what a conversation asks."""
    return tuple(message["content"] for message in messages if message["role"] == "user")


def with_chat_template(tokenizer: PreTrainedTokenizerBase, adapters: bool) -> PreTrainedTokenizerBase:
    """Return a tokenizer with a chat template: its own, or one that its first reserved tokens name the roles in.

    Adapters train no embedding, so with them the roles are words; so they are without reserved tokens.
    """
    if tokenizer.chat_template is not None:
        return tokenizer
    reserved = [f"<|reserved_{index}|>" for index in range(len(ROLES))]
    tokens, content = tokenizer.get_vocab(), tokenizer.backend_tokenizer.to_str()
    if adapters or not tokens.keys() >= set(reserved) or tokens.keys() & {f"<|{role}|>" for role in ROLES}:
        tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer
    for token, role in zip(reserved, ROLES, strict=True):
        content = content.replace(f'"{token}"', f'"<|{role}|>"')
    names = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    length = tokenizer.model_max_length
    backend = Tokenizer.from_str(content)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=length, chat_template=ROLE_TEMPLATE, **names
    )


def without_control_tokens(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> Messages:
    """Return messages without what spells a special token, so that no text ends a turn or begins another."""
    return [
        message | {"content": remove_control_tokens(message["content"], tokenizer).strip()} for message in messages
    ]


def encode_messages(messages: Messages, tokenizer: PreTrainedTokenizerBase, answering: bool = False) -> list[int]:
    """Return the tokens of messages; `answering`: with what comes before an answer.

    Raises: RecipeError: the chat template refuses them.
    """
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=answering, return_dict=True)["input_ids"]
    except TemplateError as error:
        asked = next(message["content"] for message in messages if message["role"] == "user")
        roles = ", ".join(message["role"] for message in messages)
        raise RecipeError(
            f"finetune: the chat template of the model refuses the conversation that asks {asked[:80]!r}, with the "
            f"roles {roles}: {error}; write such rows without that role, for instance a system message at the "
            "beginning of the first user message, or choose another model"
        ) from error


def mark_answers(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Return a conversation as TRL takes it: rows of input_ids, and assistant_masks with 1 at each token of an answer.

    Each answer is marked once, in one row with the answers after it. Where the chat template writes an answer
    otherwise once others follow, as Qwen 3's does, it gets a row of its own that ends with it.

    Raises: RecipeError: the chat template writes what comes before an answer otherwise once the answer is there.
    """
    rows: list[dict[str, list[int]]] = []
    for index in reversed(range(len(messages))):
        if messages[index]["role"] != "assistant":
            continue
        before = encode_messages(messages[:index], tokenizer, True)
        whole = encode_messages(messages[: index + 1], tokenizer)
        if whole[: len(before)] != before:
            raise RecipeError(
                "finetune: the chat template of the model changes what is before an answer once the answer is there, "
                "so answers cannot be told from the rest; choose a model with another template"
            )
        if not rows or rows[-1]["input_ids"][: len(whole)] != whole:
            rows.append({"input_ids": whole, "assistant_masks": [0] * len(whole)})
        rows[-1]["assistant_masks"][len(before) : len(whole)] = [1] * (len(whole) - len(before))
    return rows


def stop_tokens(row: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens at which generation stops: the eos token, and the special token that ends an answer."""
    answer = [token for token, marked in zip(*row.values(), strict=True) if marked]
    special = [token for token in answer if token in tokenizer.all_special_ids]
    return sorted({tokenizer.eos_token_id, *special[-1:]})


@torch.no_grad()
def answer_bits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> np.ndarray:
    """Return the bits that each conversation's answers cost, and their UTF-8 bytes: (num_conversations, 2)."""
    model.eval()
    found = []
    for messages in conversations:
        bits = 0.0
        for row in mark_answers(messages, tokenizer):
            input_ids = torch.tensor([row["input_ids"]], device=model.device)
            nats = F.cross_entropy(model(input_ids).logits[0, :-1].float(), input_ids[0, 1:], reduction="none").cpu()
            marked = torch.tensor(row["assistant_masks"][1:], dtype=torch.bool)
            bits += nats[marked].double().sum().item() / math.log(2)
        size = sum(len(message["content"].encode()) for message in messages if message["role"] == "assistant")
        found.append([bits, size])
    model.train()
    return np.array(found)


def bits_per_byte(scored: np.ndarray) -> dict[str, float | None]:
    """Return bits per byte over all conversations, between the bounds of its 95 % bootstrap interval over them.

    One conversation has no interval.
    """
    bits, size = scored.sum(axis=0)
    if len(scored) < 2:
        return {"low": None, "mean": float(bits / size), "high": None}
    draws = np.random.default_rng(0).integers(len(scored), size=(1000, len(scored)))
    sums = scored[draws].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return {"low": float(low), "mean": float(bits / size), "high": float(high)}


@torch.no_grad()
def answer(messages: Messages, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, most_tokens: int) -> str:
    """Return the model's answer to the messages before the last one, by greedy decoding.

    It ends where the model has no more positions, of which learned ones cannot be exceeded.
    """
    prompt = encode_messages(messages[:-1], tokenizer, answering=True)
    most_tokens = min(most_tokens, model.config.max_position_embeddings - len(prompt))
    model.eval()
    output = model.generate(
        torch.tensor([prompt], device=model.device),
        max_new_tokens=most_tokens,
        do_sample=False,
        eos_token_id=stop_tokens(mark_answers(messages, tokenizer)[0], tokenizer),
        pad_token_id=tokenizer.eos_token_id,
    )
    model.train()
    return tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip()
