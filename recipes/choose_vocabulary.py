# SPDX-License-Identifier: Apache-2.0
"""Choose the size of the vocabulary before a tokenizer is trained: measure sizes, weigh their cost, test the law.

In:   <run.output_dir>/documents/, tokenizer.*, vocabulary.* and, as what is planned, model.* and training.*.
Out:  in --results, or <run.output_dir>/vocabulary/: vocabulary.json, vocabulary.png, and runs.csv with a row for each
      small model. Tokenizers and small models themselves lie in <run.output_dir>/vocabulary/<size>/.

    python recipes/choose_vocabulary.py --config recipes/legal/base.yaml
    python recipes/choose_vocabulary.py --config recipes/legal/base.yaml --vocabulary.trained_sizes=[]  # minutes

What is weighed, each over the planned mixture of held-out text:
- bits per byte at log2(size) bits a token: BloombergGPT's measure (https://huggingface.co/papers/2303.17564, section
  2.3), which counts what a token costs if all were as probable. It knows nothing of the model's size.
- what the paper left out: the share of parameters and of FLOPs that the vocabulary takes in the planned model, the
  FLOPs for a byte of text, and the bytes that its sequence_length holds.
- the optimum of the vocabulary law (Tao et al. 2024, scaling_laws.py) for the planned model and length of training.
- bits per byte of small models at equal FLOPs, the vocabulary's included: whether the law holds on this text.

The recommendation is the law's optimum, rounded to a multiple of 128 and held within what the text carries. A row of
runs.csv is keyed by the hash of what decides the run; a run that has one is not made again. vocabulary.json:
recommended, reason, planned, law, sizes, others (tokenizer.compare_with), small_models.
"""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure  # by itself it draws with Agg, which needs no display
from tokenizers import Tokenizer
from tqdm import tqdm

from atomic_files import read_record, write_json
from fit_scaling_law import Run, add_row, claimed, last_validation, locked, read_rows, train
from launching import launch_command
from mixture.shares import average_shares, resolve_shares
from planning.charts import COLORS, save
from planning.model_shape import VOCAB_MULTIPLE, count_parameters, training_flops_per_token
from planning.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN, optimal_vocab_size
from recipe_config import Model, Recipe, RecipeError, Training
from recipe_loading import parse_command_line, run_command
from run_folder import is_finished, new_output, require
from stages import ROOT, STAGES
from train_tokenizer import as_transformers, is_general, read_texts
from train_tokenizer import train as train_tokenizer
from vocabulary.measures import first_bytes
from vocabulary.tokenizer_files import load_others, load_tokenizer


MAX_HELD_OUT_BYTES = 2_000_000  # of a source
MIN_SIZE = 512  # below it there is little but the 256 bytes
# Shapes of 33 million to 1.1 billion non-vocabulary parameters are what the law was fitted on.
LAW_FROM_PARAMETERS = 33e6
# How the small models are trained: the settings that recipes/legal/quickstart.yaml found for its own.
SMALL_TRAINING = {
    "sequence_length": 256,
    "tokens_per_step": 4096,
    "per_device_train_batch_size": 16,
    "optimizer": "muon",
    "learning_rate": 4e-3,
    "decay_fraction": 0.4,
    "logging_steps": 50,
    "eval_steps": 1_000_000,  # at the end alone
    "save_steps": 200,
}


def round_size(size: float) -> int:
    return max(MIN_SIZE, round(size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE)


def planned_flops(recipe: Recipe) -> float:
    """Return 6 N D of the planned run, N the parameters that a token is multiplied by."""
    counts = count_parameters(recipe.model, recipe.tokenizer.vocab_size)
    return FLOPS_PER_PARAMETER_AND_TOKEN * counts["multiplying"] * recipe.training.max_tokens


def law_optima(model: Model, flops: float) -> dict[str, float]:
    """Return the law's optimum for a model by each approach; only the third knows the FLOPs of the run."""
    parameters = count_parameters(model, VOCAB_MULTIPLE)["non_vocabulary"]
    return {
        f"approach_{approach}": optimal_vocab_size(parameters, model.hidden_size, approach, flops)
        for approach in (1, 2, 3)
    }


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


def tokenizer_of(recipe: Recipe, shares: dict[str, float]) -> Tokenizer:
    """Return the tokenizer of a recipe of `with_size`, trained if it was not yet.

    Raises: RecipeError: the text carries fewer entries.
    """
    documents = require(recipe, "prepare")
    if not is_finished(recipe, "tokenizer", overwrite=True):
        with new_output(recipe, "tokenizer") as output:
            size = recipe.tokenizer.vocab_size
            made = train_tokenizer(recipe, documents, shares, size, recipe.tokenizer.pad_vocabulary, f"{size:,}")
            as_transformers(made, recipe.tokenizer.special_tokens[0], recipe.training.sequence_length).save_pretrained(
                output
            )
    return load_tokenizer(str(Path(recipe.run.output_dir) / STAGES["tokenizer"].output))


def measure(tokenizer: Tokenizer, texts: dict[str, list[str]], shares: dict[str, float], recipe: Recipe) -> dict:
    """Return what a tokenizer does to the held-out text and costs in the planned model.

    Returns: vocab_size; bytes_per_token of the mixture and by domain; uniform_bits_per_byte, log2(vocab_size) for each
        token; of the planned model parameters_fraction and flops_fraction, which the vocabulary takes; flops_per_byte,
        of training on a byte of the mixture; context_bytes, what sequence_length holds.
    """
    tokens_per_byte, by_domain = {}, {}
    for source in recipe.data.sources:
        num_tokens = sum(len(one.ids) for one in tokenizer.encode_batch_fast(texts[source.name], False))
        num_bytes = sum(len(text.encode()) for text in texts[source.name])
        tokens_per_byte[source.name] = num_tokens / num_bytes
        tokens, total = by_domain.get(source.label, (0, 0))
        by_domain[source.label] = (tokens + num_tokens, total + num_bytes)
    per_byte = sum(shares[name] * rate for name, rate in tokens_per_byte.items()) / sum(shares.values())
    vocab_size, sequence_length = tokenizer.get_vocab_size(), recipe.training.sequence_length
    counts = count_parameters(recipe.model, vocab_size)
    flops = training_flops_per_token(recipe.model, vocab_size, sequence_length)
    without = training_flops_per_token(recipe.model, 0, sequence_length)
    return {
        "vocab_size": vocab_size,
        "bytes_per_token": 1 / per_byte,
        "domains": {domain: num_bytes / tokens for domain, (tokens, num_bytes) in by_domain.items()},
        "uniform_bits_per_byte": math.log2(vocab_size) * per_byte,
        "parameters_fraction": 1 - counts["non_vocabulary"] / counts["total"],
        "flops_fraction": 1 - without / flops,
        "flops_per_byte": flops * per_byte,
        "context_bytes": sequence_length / per_byte,
    }


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
    counts = count_parameters(settings.model, vocab_size)
    return Run(settings.flops, False, small, {"total": counts["total"], "multiplying": counts["multiplying"]})


def run_key(run: Run, documents: Path) -> str:
    """Return the hash of all that decides a small model: its settings and the documents."""
    recipe = run.recipe
    # Without defaults, so that a key that is added to recipes later changes no row.
    stated = recipe.model_dump(exclude_defaults=True, include={"model", "training", "tokenizer"})
    for observing in ("logging_steps", "eval_steps", "save_steps", "save_total_limit", "torch_compile"):
        stated["training"].pop(observing, None)
    shares = {source.name: source.share for source in recipe.data.sources}
    decides = {
        "recipe": stated,
        "seed": recipe.run.seed,
        "shares": shares,
        "documents": read_record(documents)["sha256"],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def train_small(recipe: Recipe, sizes: list[int], shares: dict[str, float], csv_file: Path, launch: list[str]) -> list:
    """Train the small models that have no row yet, add their rows, and return those of all sizes that are there."""
    runs = [small_run(recipe, size) for size in sizes]
    keys = [run_key(run, require(recipe, "prepare")) for run in runs]
    for key, run in tqdm(list(zip(keys, runs, strict=True)), desc="choose_vocabulary: small models", unit=" models"):
        folder = Path(run.recipe.run.output_dir)
        with claimed(folder / ".claim") as mine:
            if not mine or key in read_rows(csv_file):
                continue
            tokenizer_of(run.recipe, shares)
            config = folder / "recipe.yaml"
            config.write_text(run.recipe.dump_yaml(), encoding="utf-8")
            subprocess.run(
                [sys.executable, str(ROOT / STAGES["tokenize"].script), "--config", str(config)], check=True
            )
            trained = folder / "runs" / key
            trained.mkdir(parents=True, exist_ok=True)
            measured = train(run, trained, folder, launch)
            scored = last_validation(trained)
            by_source = {
                name.removeprefix("eval/").replace("/", "_"): f"{value:.6f}"
                for name, value in scored.items()
                if name.startswith("eval/bits_per_byte/")
            }
            kept = ("hidden_size", "num_hidden_layers", "total_parameters", "tokens", "learning_rate", "seed")
            row = {"key": key, "vocab_size": run.recipe.tokenizer.vocab_size, "flops": f"{run.budget_flops:.6g}"}
            row |= {name: measured[name] for name in kept} | {"bits_per_byte": measured["bits_per_byte"]} | by_source
            row |= {name: measured[name] for name in ("repetitions", "seconds", "device", "mixed_precision")}
            with locked(folder.parent / ".rows.lock"):
                add_row(csv_file, row)
    rows = read_rows(csv_file)
    return [rows[key] for key in keys if key in rows]


def sizes_to_train(recipe: Recipe) -> list[int]:
    """Return vocabulary.trained_sizes, or the law's optimum for the small model and 4, 16 and 64 times it."""
    settings = recipe.vocabulary
    if settings.trained_sizes is not None:
        return settings.trained_sizes
    best = law_optima(settings.model, settings.flops)["approach_3"]
    return [factor * round_size(best) for factor in (1, 4, 16, 64)]


def choose(recipe: Recipe, results: Path, launch: list[str] | None) -> dict:
    """Measure, train, and return vocabulary.json's content. Without `launch` no small model is trained."""
    documents = require(recipe, "prepare")
    sources = recipe.data.sources
    others = load_others(recipe.tokenizer.compare_with)
    stats = json.loads((documents / "stats.json").read_text(encoding="utf-8"))["sources"]
    train_bytes = {source.name: stats[source.name]["kept"]["train"]["bytes"] for source in sources}
    shares = average_shares(recipe.data, resolve_shares(recipe.data, train_bytes))
    texts = {
        source.name: first_bytes(read_texts(documents, "validation", source.name), MAX_HELD_OUT_BYTES)
        for source in sources
    }
    flops = planned_flops(recipe)
    law = law_optima(recipe.model, flops)
    by_law = round_size(law["approach_3"])

    # Every size that the text carries, the law's own among them.
    measured, left_out = [], {}
    sizes = sorted({*recipe.vocabulary.sizes, by_law})
    for size in tqdm(sizes, desc="choose_vocabulary: tokenizers", unit=" sizes"):
        try:
            tokenizer = tokenizer_of(with_size(recipe, size), shares)
        except RecipeError as error:
            left_out[str(size)] = str(error)
            continue
        measured.append(measure(tokenizer, texts, shares, recipe))
    if not measured:
        raise RecipeError(f"vocabulary.sizes: the text carries none of them: {next(iter(left_out.values()))}")
    reached = [row["vocab_size"] for row in measured]
    recommended = min(by_law, max((size for size in reached if size % VOCAB_MULTIPLE == 0), default=max(reached)))

    trained_sizes = sizes_to_train(recipe)
    small = train_small(recipe, trained_sizes, shares, results / "runs.csv", launch) if launch else []
    small_law = law_optima(recipe.vocabulary.model, recipe.vocabulary.flops)
    found = {
        "recommended": recommended,
        "planned": {
            "non_vocabulary_parameters": count_parameters(recipe.model, VOCAB_MULTIPLE)["non_vocabulary"],
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
    return found | {"reason": list(reasons(found, by_law, {s.label for s in sources if not is_general(s)}))}


def reasons(found: dict, by_law: int, domains: set[str]) -> Iterator[str]:
    """Say in sentences why this size, what the other measures say, and against whom it saves what."""
    planned, law, rows = found["planned"], found["law"], {row["vocab_size"]: row for row in found["sizes"]}
    size, row = found["recommended"], rows[found["recommended"]]
    parameters = planned["non_vocabulary_parameters"]
    outside = "" if parameters >= LAW_FROM_PARAMETERS else ", fewer than it was fitted on"
    yield (
        f"{size:,} entries: the vocabulary law (approach 3) gives {law['approach_3']:,} for {parameters / 1e6:,.1f} M "
        f"non-vocabulary parameters{outside}, a width of {planned['hidden_size']:,} and {planned['flops']:.2g} FLOPs; "
        f"approaches 1 and 2, which take the length to be optimal, give {law['approach_1']:,} and "
        f"{law['approach_2']:,}."
    )
    if size < by_law:
        yield f"The text carries no more of {by_law:,}; with more text measure again."
    yield (
        f"The vocabulary is then {row['parameters_fraction']:.1%} of the parameters and {row['flops_fraction']:.1%} "
        f"of the FLOPs; a sequence of {planned['sequence_length']:,} tokens holds {row['context_bytes']:,.0f} bytes."
    )
    paper = min(found["sizes"], key=lambda one: one["uniform_bits_per_byte"])
    edge = paper["vocab_size"] in (min(rows), max(rows))
    yield (
        f"Tokens times log2(size) alone, BloombergGPT's measure, is least at {paper['vocab_size']:,}"
        f"{', the end of what was tried' if edge else ''}, where the vocabulary would be "
        f"{paper['parameters_fraction']:.1%} of the parameters."
    )
    cheapest = min(found["sizes"], key=lambda one: one["flops_per_byte"])
    yield (
        f"Training on a byte of text costs least at {cheapest['vocab_size']:,}, of those measured: "
        f"{fewer(1 - cheapest['flops_per_byte'] / row['flops_per_byte'])} FLOPs than at {size:,}."
    )
    runs = found["small_models"]["runs"]
    if len(runs) > 1:
        best = min(runs, key=lambda run: run["bits_per_byte"])
        listed = ", ".join(f"{run['vocab_size']:,}: {run['bits_per_byte']:.4f}" for run in runs)
        yield (
            f"Small models of {found['small_models']['non_vocabulary_parameters'] / 1e6:.2f} M non-vocabulary "
            f"parameters, for which the law gives {found['small_models']['law']['approach_3']:,}, trained with "
            f"{found['small_models']['flops']:.2g} FLOPs each (one seed), in bits per byte: {listed}. Best is "
            f"{best['vocab_size']:,}."
        )
    for name, other in found["others"].items():
        by_domain = [
            f"{fewer(1 - other['domains'][domain] / row['domains'][domain])} tokens on {domain}"
            for domain in sorted(row["domains"], key=lambda domain: domain not in domains)
        ]
        yield (
            f"Beside {name} ({other['vocab_size']:,} entries) it takes {', '.join(by_domain)}; the "
            f"planned model trains on the mixture with {fewer(1 - row['flops_per_byte'] / other['flops_per_byte'])} "
            "FLOPs."
        )


def fewer(fraction: float) -> str:
    return f"{abs(fraction):.1%} {'fewer' if fraction >= 0 else 'MORE'}"


def draw(found: dict, path: Path) -> None:
    """Draw the four measures over the size, and the recommendation."""
    sizes = [row["vocab_size"] for row in found["sizes"]]
    runs = found["small_models"]["runs"]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    (compression, cost), (share, trained) = figure.subplots(2, 2)
    compression.plot(sizes, [row["bytes_per_token"] for row in found["sizes"]], "o-", color=COLORS[0], label="ours")
    for index, (name, other) in enumerate(found["others"].items()):
        compression.plot(other["vocab_size"], other["bytes_per_token"], "sD^vPX"[index % 6], color="0.4")
        compression.annotate(name, (other["vocab_size"], other["bytes_per_token"]), fontsize=6, ha="right", va="top")
    compression.set(ylabel="bytes per token of the mixture")
    cost.plot(sizes, [row["uniform_bits_per_byte"] for row in found["sizes"]], "o-", color=COLORS[0])
    cost.set(ylabel="log2(size) bits a token, per byte", title="BloombergGPT's measure")
    share.plot(
        sizes, [100 * row["parameters_fraction"] for row in found["sizes"]], "o-", color=COLORS[0], label="parameters"
    )
    share.plot(
        sizes,
        [100 * row["flops_fraction"] for row in found["sizes"]],
        "s--",
        color=COLORS[1],
        label="FLOPs of a token",
    )
    least = min(row["flops_per_byte"] for row in found["sizes"])
    share.plot(
        sizes,
        [100 * (row["flops_per_byte"] / least - 1) for row in found["sizes"]],
        "^-.",
        color=COLORS[2],
        label="FLOPs of a byte over the least",
    )
    share.set(ylabel="per cent", title="what it takes of the planned model")
    share.legend(fontsize="small")
    for index, name in enumerate(key for key in (runs[0] if runs else {}) if key.startswith("bits_per_byte")):
        label = name.removeprefix("bits_per_byte").strip("_") or "all"
        points = sorted((run["vocab_size"], run[name]) for run in runs)
        trained.plot(*zip(*points, strict=True), "os^Dv"[index % 5] + "-", color=COLORS[index % 7], label=label)
    if runs:
        small = found["small_models"]
        trained.axvline(small["law"]["approach_3"], color="0.5", linestyle=":", label="law's optimum for this model")
        trained.legend(fontsize="small")
    trained.set(
        ylabel="bits per byte of held-out text",
        title=f"small models at {found['small_models']['flops']:.2g} FLOPs each",
    )
    trained.set_visible(bool(runs))
    for axes in (compression, cost, share):
        axes.axvline(found["recommended"], color=COLORS[5], linewidth=1)
    compression.set_title(f"recommended (red): {found['recommended']:,}")
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        axes.set_xlabel("entries")
        axes.grid(alpha=0.3)
    save(figure, path)


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(
        __doc__,
        argv,
        results="folder for vocabulary.json, vocabulary.png and runs.csv; default: vocabulary/ of the run",
        accelerate_config="file of accelerate_configs/ to train the small models with",
        num_processes="processes to train them with, where that file leaves it open",
    )
    require(recipe, "prepare")
    results = Path(options.results or Path(recipe.run.output_dir) / "vocabulary")
    trained_sizes = sizes_to_train(recipe)
    print(
        f"choose_vocabulary: {len(recipe.vocabulary.sizes)} sizes; {len(trained_sizes)} small models "
        f"({', '.join(f'{size:,}' for size in trained_sizes)}) of {recipe.vocabulary.flops:.2g} FLOPs each"
    )
    if options.dry_run:
        return
    chosen = Path(options.accelerate_config) if options.accelerate_config else None
    launch = launch_command(chosen, options.num_processes) if trained_sizes else None
    found = choose(recipe, results, launch)
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "vocabulary.json", found)
    draw(found, results / "vocabulary.png")
    for sentence in found["reason"]:
        print(f"choose_vocabulary: {sentence}")
    print(f"choose_vocabulary: set tokenizer.vocab_size={found['recommended']}; {results}/vocabulary.json")


if __name__ == "__main__":
    run_command(main)
