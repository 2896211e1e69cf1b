# SPDX-License-Identifier: Apache-2.0
"""Show which training documents a text comes from, span by span: source, licence, place, and the steps that saw it.

In:   a run folder with documents/ and tokenizer/; with a checkpoint, the steps too; for --prompt, model/; for
      --samples, eval/results.json.
Out:  <run>/trace/<samples|prompt|text>.html to read, .json beside it, a table on the terminal. They stay on this
      machine: they hold training text. <run>/trace/index is built once, 1.5 bytes for each byte of training text.

    python recipes/trace_text.py runs/legal-quickstart --samples
    python recipes/trace_text.py runs/legal-quickstart --prompt "The court"
    python recipes/trace_text.py runs/legal-quickstart --text letter.txt      # or the text itself, in quotes

A span is the longest passage that stands word for word in a training document. Spans that are no longer than those of
held-out text of the same length are marked as such: they say nothing about the source.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from atomic_files import read_json, replace_text, write_json
from card_text import render_html
from corpus.document_files import in_form_of
from mixture.ledger import Ledger
from provenance.text_index import build_index
from provenance.tracing import Tracer
from recipe_config import RecipeError
from recipe_loading import load_recipe, run_command, silence_transformers
from recovery.run_lock import run_lock
from recovery.stored_tensors import newest_state


MAX_TEXT_BYTES = 1 << 20
NEW_TOKENS = 200


def refuse_unprepared(run: Path) -> None:
    """Refuse a run folder that lacks what tracing needs. Raises: RecipeError."""
    for needed, stage in (("recipe.yaml", "pretrain.py"), ("documents/stage.json", "prepare_data.py")):
        if not (run / needed).exists():
            raise RecipeError(f"{run / needed} is missing; run recipes/{stage} first")


def open_tracer(run: Path, least_tokens: int) -> Tracer:
    """Open a run for tracing, and build its index if there is none."""
    recipe, state = load_recipe([run / "recipe.yaml"]), newest_state(run)
    return Tracer(
        run,
        recipe,
        build_index(run),
        Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json")),
        Ledger(run, recipe, state) if state else None,
        state["step"] if state else 0,
        least_tokens,
    )


def read_samples(run: Path) -> list[dict]:
    """Return the prompt and the text of each sample of the evaluation.

    Raises: RecipeError: there are none.
    """
    results = read_json(run / "eval" / "results.json")
    if not results or not results["samples"]:
        raise RecipeError(f"{run}/eval/results.json: no samples; run eval/run_eval.py, or give --prompt or --text")
    return results["samples"]


def read_text(text: str) -> list[dict]:
    """Return the text of a file of this name, or the text itself.

    Raises: RecipeError: it is empty, too long or not UTF-8.
    """
    named = len(text) < 1000 and "\n" not in text and Path(text).is_file()
    data = Path(text).read_bytes() if named else text.encode()
    if not data.strip() or len(data) > MAX_TEXT_BYTES:
        raise RecipeError(f"--text: {len(data):,} bytes; give between 1 and {MAX_TEXT_BYTES:,}")
    try:
        return [{"prompt": "", "text": data.decode("utf-8-sig")}]
    except UnicodeDecodeError as error:
        raise RecipeError(f"--text {text}: not UTF-8 ({error})") from error


def generate(run: Path, prompt: str) -> list[dict]:
    """Return the prompt and what the run's model writes after it, by greedy decoding: the text it knows best."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds to import, and only needed here

    if not (run / "model" / "config.json").exists():
        raise RecipeError(f"{run}/model is missing; finish recipes/pretrain.py first, or give --text")
    silence_transformers()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model", use_safetensors=True).eval()
    room = model.config.max_position_embeddings - NEW_TOKENS
    given = tokenizer(prompt, return_tensors="pt")["input_ids"][:, -max(1, room) :]
    written = model.generate(given, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return [{"prompt": prompt, "text": tokenizer.decode(written[0, given.shape[1] :], skip_special_tokens=True)}]


def describe(traced: dict) -> str:
    """Return the lines of the terminal for one text."""
    lines = [f"{traced['tokens']:,} tokens, {100 * traced['covered_fraction']:.0f} % in spans"]
    for span in traced["spans"][:5]:
        words = " ".join(traced["text"][span["begin"] : span["end"]].split())
        common = "" if span["beyond_baseline"] else "  (as long in held-out text)"
        lines.append(f"  {span['tokens']:>4} tokens, {span['count']:,} times: {words[:90]!r}{common}")
        for document in span["documents"][:3]:
            steps = document["steps"]
            seen = "" if steps is None else f", trained on in {len(steps):,} steps"
            place = ":".join(map(str, document["places"][0])) if document["places"] else "place not noted"
            place += f", page {document['page']}" if document["page"] else ""
            lines.append(f"       {document['document']}  {document['source']}  {place}{seen}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--samples", action="store_true", help="the samples of the evaluation")
    asked.add_argument("--prompt", help="what the run's model writes after this prompt")
    asked.add_argument("--text", help="a text, or the name of a text file")
    parser.add_argument("--min_tokens", type=int, default=8, help="tokens of the shortest span that counts (8)")
    options = parser.parse_args(argv)
    if options.min_tokens < 1:
        raise RecipeError(f"--min_tokens {options.min_tokens}: give at least 1")
    run = options.run_folder
    kind = "samples" if options.samples else "text" if options.text is not None else "prompt"
    given = read_samples(run) if options.samples else read_text(options.text) if options.text is not None else None
    refuse_unprepared(run)
    if options.text is not None:
        given = [{"prompt": "", "text": in_form_of(run / "documents", entry["text"])} for entry in given]
        if not given[0]["text"]:
            raise RecipeError("--text: nothing but invisible characters; give some words")
    with run_lock(run / "trace", "trace"):  # and not on the run, whose training may go on meanwhile
        tracer = open_tracer(run, options.min_tokens)
        given = generate(run, options.prompt) if given is None else given
        traced = [entry | tracer.trace(entry["text"]) for entry in given]
        baseline = tracer.measure_baseline(max(entry["tokens"] for entry in traced))
        for entry in traced:
            for span in entry["spans"]:
                span["beyond_baseline"] = span["tokens"] > (baseline["p95_tokens"] or 0)
                span["sources"] = sorted(
                    {(document["source"], document["license"] or "") for document in span["documents"]}
                )
        found = {"min_tokens": options.min_tokens, "baseline": baseline, "texts": traced}
        write_json(run / "trace" / f"{kind}.json", found)
        template = Path(__file__).with_name("provenance") / "trace_page.html.jinja"
        replace_text(run / "trace" / f"{kind}.html", render_html(template, run_name=run.name, **found))
    for entry in traced:
        print(f"[{entry['prompt']}]" if entry["prompt"] else "text", describe(entry), sep=": ")
    if baseline["passages"]:
        print(
            f"held-out passages of {max(entry['tokens'] for entry in traced)} tokens: the longest span has "
            f"{baseline['median_tokens']} tokens in the median, {baseline['p95_tokens']} at the 95th percentile"
        )
    print(f"page: {run / 'trace' / f'{kind}.html'}")


if __name__ == "__main__":
    run_command(main)
