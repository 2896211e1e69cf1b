# SPDX-License-Identifier: Apache-2.0
"""Choose the size of the vocabulary before a tokenizer is trained: measure sizes and their cost, test the law.

In:   <run.output_dir>/documents/, tokenizer.*, vocabulary.* and, of the planned run, model.* and training.*.
Out:  <run.output_dir>/vocabulary/: vocabulary.json, vocabulary.png, and runs.csv with a row for each small model; with
      --results the table is there, and the two files are copied there. The tokenizers and small models are in
      <run.output_dir>/vocabulary/<size>/: --overwrite keeps them.

    python recipes/choose_vocabulary.py --config recipes/legal/base.yaml
    python recipes/choose_vocabulary.py --config recipes/legal/base.yaml --vocabulary.trained_sizes=[]  # minutes

Measured on the planned mixture of held-out text:
- bits per byte at log2(size) bits a token: BloombergGPT's measure (https://huggingface.co/papers/2303.17564, section
  2.3). It takes all tokens to be equally probable, and ignores the model's size.
- the vocabulary's share of the planned model's parameters and FLOPs, the FLOPs for a byte of text, and the bytes that
  sequence_length tokens hold.
- the optimum of the vocabulary law (Tao et al. 2024, planning/scaling_laws.py) for the planned model and run.
- bits per byte of small models at equal FLOPs, the vocabulary's included: whether the law holds on this text.

The recommendation is the law's optimum, rounded to a multiple of 128 and limited by the text, where the planned model
is as large as those that the law was fitted on. For a smaller one it is the size of the best small model or, if none
were trained, the size at which training on a byte of text costs least. A small model that has a row in runs.csv is not
trained again; see sweeps/runs.py. vocabulary.json: recommended, by (law, small models or cost), reason, planned, law,
sizes, others (tokenizer.compare_with), small_models.
"""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer
from tqdm import tqdm

from atomic_files import RECORD, read_record, write_json
from child_processes import leave_on_signals
from mixture.shares import average_shares, resolve_shares
from planning.model_shape import VOCAB_MULTIPLE, count_parameters, training_flops_per_token
from planning.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN
from planning.vocabulary_size import LAW_FROM_PARAMETERS, describe_choice, draw_sizes, law_optima, measure, round_size
from recipe_config import Recipe, RecipeError, Training
from recipe_loading import parse_command_line, run_command
from recovery.run_lock import run_lock
from run_folder import describe_inputs, is_finished, new_output, require, write_record
from stages import STAGES, output_folder
from sweeps.runs import (
    KEPT,
    Run,
    choose_launcher,
    hash_settings,
    locked,
    read_rows,
    run_stage,
    state_pretokenization,
    train_missing,
    train_model,
    write_config,
)
from vocabulary.measures import first_bytes
from vocabulary.tokenizer_files import load_others, load_tokenizer
from vocabulary.tokenizer_training import TrainingSample, as_transformers, read_texts, train_tokenizer


MAX_HELD_OUT_BYTES = 2_000_000  # of a source
# For the small models, as recipes/legal/quickstart.yaml trains its own.
SMALL_TRAINING = {
    "sequence_length": 256,
    "tokens_per_step": 4096,
    "per_device_train_batch_size": 16,
    "optimizer": "muon",
    "learning_rate": 4e-3,
    "decay_fraction": 0.4,
    "logging_steps": 50,
    "eval_steps": 1_000_000,  # only at the end
    "save_steps": 200,
}


def planned_flops(recipe: Recipe) -> float:
    """Return 6 N D of the planned run, N the parameters that a token is multiplied by."""
    counts = count_parameters(recipe.model, recipe.tokenizer.vocab_size)
    return FLOPS_PER_PARAMETER_AND_TOKEN * counts["multiplying"] * recipe.training.max_tokens


def with_size(recipe: Recipe, vocab_size: int) -> Recipe:
    """Return the recipe of a tokenizer of another size in a folder of its own, over the same documents."""
    folder = Path(recipe.run.output_dir) / "vocabulary" / str(vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    documents = folder / STAGES["prepare"].output
    if not documents.is_symlink():
        documents.symlink_to((Path(recipe.run.output_dir) / documents.name).resolve(), target_is_directory=True)
    other = recipe.model_copy(deep=True)
    other.run.output_dir = str(folder)
    other.data.fit_to_corpus = False
    other.tokenizer = recipe.tokenizer.model_copy(
        update={"vocab_size": vocab_size, "terms": [], "terms_file": None, "compare_with": []}
    )
    return other


def tokenizer_of(recipe: Recipe, shares: dict[str, float], sample: TrainingSample) -> Tokenizer:
    """Return the tokenizer of a recipe from `with_size`, and train it if that is not done yet.

    Raises: RecipeError: the text is too small for so many tokens.
    """
    require(recipe, "prepare")
    if not is_finished(recipe, "tokenizer", overwrite=True):
        with new_output(recipe, "tokenizer") as output:
            size = recipe.tokenizer.vocab_size
            made = train_tokenizer(recipe, sample, shares, size, recipe.tokenizer.pad_vocabulary, f"{size:,}")
            as_transformers(made, recipe.tokenizer.special_tokens[0], recipe.training.sequence_length).save_pretrained(
                output
            )
    return load_tokenizer(str(Path(recipe.run.output_dir) / STAGES["tokenizer"].output))


def small_run(recipe: Recipe, vocab_size: int) -> Run:
    """Return the run of a small model: as many tokens as vocabulary.flops pay for."""
    settings = recipe.vocabulary
    length, step = SMALL_TRAINING["sequence_length"], SMALL_TRAINING["tokens_per_step"]
    tokens = settings.flops / training_flops_per_token(settings.model, vocab_size, length)
    small = with_size(recipe, vocab_size)
    small.model = settings.model
    small.training = Training(
        **SMALL_TRAINING,
        max_tokens=max(2, round(tokens / step)) * step,
        torch_compile=recipe.training.torch_compile,
        max_eval_bytes=recipe.training.max_eval_bytes,
    )
    return Run(small, settings.flops)


def run_key(run: Run, documents: Path) -> str:
    """Return the key of a small model's row: the hash of its settings and the documents."""
    recipe = run.recipe
    # Without defaults, so that a key that is added to recipes later changes no row.
    stated = recipe.model_dump(exclude_defaults=True, include={"model", "training", "tokenizer"})
    stated = state_pretokenization(stated, recipe)
    for not_deciding in ("logging_steps", "eval_steps", "save_steps", "save_total_limit", "torch_compile"):
        stated["training"].pop(not_deciding, None)
    shares = {source.name: source.share for source in recipe.data.sources}
    documents_hash = read_record(documents)["sha256"]
    return hash_settings({"recipe": stated, "seed": recipe.run.seed, "shares": shares, "documents": documents_hash})


def train(run: Run, folder: Path, shares: dict[str, float], sample: TrainingSample, launcher: list[str]) -> dict:
    """Make a small model's tokenizer and tokens, train it in `folder`, and return its row without the key."""
    recipe = run.recipe
    inputs = Path(recipe.run.output_dir)
    with locked(inputs / ".sizes.lock"):  # not the own lock of the stage, which runs inside
        tokenizer_of(recipe, shares, sample)
        run_stage("tokenize", [sys.executable], write_config(recipe, inputs), inputs, run.name)
    training, scores = train_model(recipe, folder, inputs, launcher, run.name)
    of_model = recipe.scored_as()
    by_source = {
        name.removeprefix(f"{of_model}/").replace("/", "_"): f"{value:.6f}"
        for name, value in scores.items()
        if name.startswith(f"{of_model}/bits_per_byte/")
    }
    return {
        "vocab_size": recipe.tokenizer.vocab_size,
        "flops": f"{run.flops:.6g}",
        "hidden_size": recipe.model.hidden_size,
        "num_hidden_layers": recipe.model.num_hidden_layers,
        "total_parameters": count_parameters(recipe.model, recipe.tokenizer.vocab_size)["total"],
        "tokens": training["tokens_seen"],
        "learning_rate": f"{recipe.training.learning_rate:.6g}",
        "seed": recipe.run.seed,
        "bits_per_byte": f"{scores[f'{of_model}/bits_per_byte']:.6f}",
        **by_source,
        "repetitions": f"{max(part['repetitions'] for part in training['mixture'].values()):.3f}",
        "seconds": f"{training['seconds']:.1f}",
        "device": training["device"],
        "mixed_precision": training["mixed_precision"],
    }


def train_small(
    recipe: Recipe,
    sizes: list[int],
    shares: dict[str, float],
    sample: TrainingSample,
    csv_file: Path,
    launcher: list[str],
) -> list:
    """Train the small models that have no row yet, and return the rows of all sizes that have one."""
    runs = [small_run(recipe, size) for size in sizes]
    documents = require(recipe, "prepare")
    by_key = {run_key(run, documents): run for run in runs}
    folder = Path(recipe.run.output_dir) / "vocabulary"
    train_missing(by_key, csv_file, folder, partial(train, shares=shares, sample=sample, launcher=launcher))
    rows = read_rows(csv_file)
    return [rows[key] for key in by_key if key in rows]


def sizes_to_train(recipe: Recipe) -> list[int]:
    """Return vocabulary.trained_sizes, or the law's optimum for the small model and 4, 16 and 64 times it."""
    settings = recipe.vocabulary
    if settings.trained_sizes is not None:
        return settings.trained_sizes
    best = law_optima(settings.model, settings.flops)["approach_3"]
    return [factor * round_size(best) for factor in (1, 4, 16, 64)]


def choose(recipe: Recipe, results: Path, launcher: list[str] | None, folder: Path) -> dict:
    """Measure, train, and return vocabulary.json's content.

    Args:
        recipe: of the planned run.
        results: folder of runs.csv.
        launcher: of the small models' training; None trains none.
        folder: for the text that all tokenizers are trained on.
    """
    documents = require(recipe, "prepare")
    sources = recipe.data.sources
    others = load_others(recipe.tokenizer.compare_with)
    stats = json.loads((documents / "stats.json").read_text(encoding="utf-8"))["sources"]
    train_bytes = {source.name: stats[source.name]["kept"]["train"]["bytes"] for source in sources}
    shares = average_shares(recipe.data, resolve_shares(recipe.data, train_bytes))
    sample = TrainingSample(recipe, documents, [shares], folder)
    texts = {
        source.name: first_bytes(read_texts(documents, "validation", source.name), MAX_HELD_OUT_BYTES)
        for source in sources
    }
    flops = planned_flops(recipe)
    law = law_optima(recipe.model, flops)
    by_law = round_size(law["approach_3"])

    # Every size that the text is large enough for, the law's own among them.
    measured, left_out = [], {}
    sizes = sorted({*recipe.vocabulary.sizes, by_law, *(sizes_to_train(recipe) if launcher else [])})
    for size in tqdm(sizes, desc="choose_vocabulary: tokenizers", unit=" sizes"):
        try:
            tokenizer = tokenizer_of(with_size(recipe, size), shares, sample)
        except RecipeError as error:
            left_out[str(size)] = str(error)
            continue
        measured.append(measure(tokenizer, texts, shares, recipe))
    if not measured:
        raise RecipeError(f"vocabulary.sizes: the text is too small for all of them: {next(iter(left_out.values()))}")
    reached = [row["vocab_size"] for row in measured]
    trained_sizes = sizes_to_train(recipe)
    small = train_small(recipe, trained_sizes, shares, sample, results / "runs.csv", launcher) if launcher else []
    small_law = law_optima(recipe.vocabulary.model, recipe.vocabulary.flops)
    parameters = count_parameters(recipe.model, VOCAB_MULTIPLE)["non_vocabulary"]
    trained = {
        int(row["vocab_size"]): float(row["bits_per_byte"]) for row in small if int(row["vocab_size"]) in reached
    }
    if parameters >= LAW_FROM_PARAMETERS:
        by, whole = "law", [size for size in reached if size % VOCAB_MULTIPLE == 0]
        recommended = min(by_law, max(whole, default=max(reached)))
    elif len(trained) > 1:
        by, recommended = "small models", min(trained, key=trained.get)
    else:
        by, recommended = "cost", min(measured, key=lambda row: row["flops_per_byte"])["vocab_size"]
    found = {
        "recommended": recommended,
        "by": by,
        "planned": {
            "non_vocabulary_parameters": parameters,
            "hidden_size": recipe.model.hidden_size,
            "max_tokens": recipe.training.max_tokens,
            "sequence_length": recipe.training.sequence_length,
            "flops": flops,
        },
        "law": {name: round(size) for name, size in law.items()},
        "held_out_bytes": {name: sum(len(text.encode()) for text in some) for name, some in texts.items()},
        "shares": shares,
        "train_bytes": train_bytes,
        "sizes": measured,
        "left_out": left_out,
        "others": {name: measure(tokenizer, texts, shares, recipe) for name, tokenizer in others.items()},
        "small_models": {
            "flops": recipe.vocabulary.flops,
            "non_vocabulary_parameters": count_parameters(recipe.vocabulary.model, VOCAB_MULTIPLE)["non_vocabulary"],
            "law": {name: round(size) for name, size in small_law.items()},
            "runs": [
                {"vocab_size": int(row["vocab_size"]), "tokens": int(row["tokens"]), "key": row["key"]}
                | {name: float(value) for name, value in row.items() if name.startswith("bits_per_byte")}
                for row in small
            ],
        },
    }
    domains = {source.label for source in sources} - {"general"}
    return found | {"reason": list(describe_choice(found, by_law, domains))}


@leave_on_signals(KEPT)
def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(
        __doc__,
        argv,
        results="folder of runs.csv, and for copies of vocabulary.json and .png; default: vocabulary/ of the run",
        accelerate_config="file of accelerate_configs/ to train the small models with",
        num_processes="processes to train them with, where that file leaves it open",
    )
    require(recipe, "prepare")
    output = output_folder(recipe, "vocabulary")
    results = Path(options.results or output)
    trained_sizes = sizes_to_train(recipe)
    finished = is_finished(recipe, "vocabulary", options.overwrite)
    if finished:
        print(f"choose_vocabulary: nothing to do, {output} is up to date")
    else:
        print(
            f"choose_vocabulary: {len(recipe.vocabulary.sizes)} sizes; {len(trained_sizes)} small models "
            f"({', '.join(f'{size:,}' for size in trained_sizes)}) of {recipe.vocabulary.flops:.2g} FLOPs each"
        )
    if options.dry_run:
        return
    if not finished:
        with run_lock(Path(recipe.run.output_dir), "vocabulary"):
            made_from = describe_inputs(recipe, "vocabulary")
            begun = (Path(recipe.run.output_dir) / "vocabulary").glob("*/runs/*")
            launcher = choose_launcher(options, recipe, results / "runs.csv", begun) if trained_sizes else None
            with TemporaryDirectory(prefix=".sample.", dir=recipe.run.output_dir) as folder:
                found = choose(recipe, results, launcher, Path(folder))
            output.mkdir(parents=True, exist_ok=True)
            (output / RECORD).unlink(missing_ok=True)  # until all files are whole
            write_json(output / "vocabulary.json", found)
            draw_sizes(found, output / "vocabulary.png")
            write_record(output, "vocabulary", made_from)
    found = json.loads((output / "vocabulary.json").read_text(encoding="utf-8"))
    if options.results:
        results.mkdir(parents=True, exist_ok=True)
        for name in ("vocabulary.json", "vocabulary.png"):
            shutil.copyfile(output / name, results / name)
    for sentence in found["reason"]:
        print(f"choose_vocabulary: {sentence}")
    print(f"choose_vocabulary: set tokenizer.vocab_size={found['recommended']}; {results}/vocabulary.json")


if __name__ == "__main__":
    run_command(main)
