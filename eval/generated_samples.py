# SPDX-License-Identifier: Apache-2.0
"""Text that a model generates after a prompt."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bits_per_byte import encode_text, start_token_id
from limits import NotScored


# Small models repeat themselves: at once when decoded greedily, soon when sampled without a penalty.
GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "max_new_tokens": 80}


@torch.inference_mode()
def generate_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, context_length: int, seed: int
) -> dict[str, str]:
    """Sample a continuation with the settings in GENERATION, from the seed alone: other prompts do not change it.

    A prompt that is too long loses its start.

    Returns: {"prompt", "text"}.
    Raises: NotScored: the model's probabilities are not numbers.
    """
    room = max(context_length // 2, context_length - 1 - GENERATION["max_new_tokens"])
    ids = encode_text(tokenizer, prompt)[0].tolist()[-room:]
    input_ids = torch.tensor([[start_token_id(tokenizer), *ids]], device=model.device)
    torch.manual_seed(seed)
    if model(input_ids=input_ids, use_cache=False).logits[0, -1].softmax(-1).isnan().any():  # sampling would only fail
        raise NotScored.of_numbers(f"prompt {prompt!r}: the model's probabilities are not numbers", model.dtype)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        pad_token_id=start_token_id(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        **GENERATION | {"max_new_tokens": min(GENERATION["max_new_tokens"], context_length - input_ids.shape[1])},
    )
    return {
        "prompt": prompt,
        "text": tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True),
    }
