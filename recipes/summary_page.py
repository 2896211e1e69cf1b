# SPDX-License-Identifier: Apache-2.0
"""Serve a page on this machine: paste a text, read its summary by the fine-tuned model.

In:   <run.output_dir>/finetuned/, which finetune.py writes, and finetune.* of the recipe.

    pip install gradio==6.31.0      # not in requirements.txt: it needs Pillow below 13 and brings 15 packages
    python recipes/summary_page.py --config recipes/legal/summarise.yaml [--port 7860]

The page listens on the loopback address only and opens no tunnel: pasted text stays on this machine.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from atomic_files import read_json
from recipe_config import Recipe, RecipeError
from recipe_loading import parse_command_line, run_command, silence_transformers
from summaries import lead, summarise


ADDRESS = "127.0.0.1"
MAX_CHARACTERS = 200_000
DISCLAIMER = (
    "A small model wrote this. It may leave out what matters and state what the text does not say. "
    "It is no legal advice; read the text."
)

EXAMPLE = (
    "The Secretary shall establish a program to repair small bridges. A county may apply for a grant of not more than "
    "$200,000. The Secretary shall prefer counties that have closed a bridge within the last two years. There are "
    "authorized to be appropriated $10,000,000 for each of the next three fiscal years."
)


def describe_quality(results: dict) -> str:
    """Return how the model's summaries compare with the first sentences of the test documents, as its card says."""
    name, difference = next(iter(results["after_minus"].items()))
    rouge = difference["rouge2"]
    if rouge["low"] is None:
        return f"One test document does not show how its summaries compare with the {name}."
    if rouge["high"] < 0:
        return f"**On the test documents its ROUGE-2 is below that of the {name}. Do not use it in their place.**"
    if rouge["low"] <= 0:
        return f"On the test documents its ROUGE-2 cannot be distinguished from that of the {name}."
    return f"On the test documents its ROUGE-2 is above that of the {name}."


def build_page(recipe: Recipe):
    """Load the model and return the page.

    Raises: RecipeError: gradio is not installed, or there is no model that was fine-tuned to summarise.
    """
    settings, folder = recipe.finetune, Path(recipe.run.output_dir) / "finetuned"
    results = read_json(folder / "results.json")
    if "bits_per_byte" in (results or {}):
        raise RecipeError(
            f'{folder} learned to converse, not to summarise; talk to it: pip install "transformers[serving]", then '
            f"transformers serve {folder}, and in another terminal transformers chat {folder}"
        )
    if settings is None or "after_minus" not in (results or {}):
        raise RecipeError(f"{folder} is missing; run recipes/finetune.py with the same --config first")
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise RecipeError("gradio is not installed; run: pip install gradio==6.31.0") from error
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)

    def answer(text: str) -> tuple[str, str]:
        if not text.strip():
            raise gradio.Error("Paste a text first.")
        if len(text) > MAX_CHARACTERS:
            raise gradio.Error(f"The text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed.")
        summary = summarise([text], model, tokenizer, settings)[0]
        return summary or "(the model wrote nothing)", lead(text, settings.lead_sentences)

    with gradio.Blocks(title="Summary") as page:
        gradio.Markdown(f"# Summary\n\n{DISCLAIMER} {describe_quality(results)}")
        text = gradio.Textbox(label="Text", lines=14, elem_id="text")
        example = gradio.Button("Try an example", elem_id="example")
        example.click(lambda: EXAMPLE, None, text)
        button = gradio.Button("Summarize", variant="primary", elem_id="summarize")
        summary = gradio.Textbox(label="Summary", lines=6, elem_id="summary")
        sentences = gradio.Textbox(label=f"First {settings.lead_sentences} sentences, to compare", elem_id="lead")
        button.click(answer, text, [summary, sentences])
    return page


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv, port="port to listen on (7860)")
    silence_transformers()
    build_page(recipe).launch(server_name=ADDRESS, server_port=int(options.port or 7860), share=False)


if __name__ == "__main__":
    run_command(main)
