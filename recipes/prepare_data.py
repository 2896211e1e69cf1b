# SPDX-License-Identifier: Apache-2.0
"""Stage 1: from the sources of the recipe to clean, de-duplicated documents in disjoint splits.

In:   data.sources, and extract_text(example, source) of the recipe's data.py; benchmarks/ of the run.
Out:  <run.output_dir>/documents/<train|validation|test|future>/<source>/*.parquet with id, source, text, date;
      documents/README.md, the data card; documents/stats.json with the documents and bytes read, kept, and dropped
      under each reason; documents/decontamination.json with the benchmark items that were looked for and found;
      documents/quarantine.jsonl with the place and the reason of everything that could not be read.

    python recipes/prepare_data.py --config recipes/legal/quickstart.yaml
    python recipes/prepare_data.py --config recipes/legal/base.yaml --data.workers=32

The steps are datatrove's where it has them, the rest is in corpus/, one step a file. Each task reads a part of one
source that depends only on the names and sizes of its files, so the output is the same, byte for byte, whatever the
number of workers and wherever they run.
"""

from functools import partial

from datatrove.pipeline.readers import ParquetReader

from atomic_files import discard, write_json
from corpus.accounting import count_documents, explain_empty, gather_stats, sum_counts
from corpus.benchmark_overlap import BenchmarkIndex, drop_overlapping, write_report
from corpus.data_card import write_data_card
from corpus.document_files import write_documents
from corpus.exact_duplicates import find_exact_duplicates
from corpus.held_out import describe_dates, least_trained, note_documents, plan_splits, write_splits
from corpus.near_duplicates import find_near_duplicates, list_earlier_documents
from corpus.pipeline_executor import check_executor, run_pipeline, track
from corpus.reading import pin_revisions, plan_parts, read_part
from corpus.repeated_passages import find_repeated_passages, summarise
from recipe_config import Recipe, RecipeError
from recipe_loading import parse_command_line, run_command
from run_folder import is_finished, new_output
from stages import benchmarks_folder, exported_tasks, unexported_tasks, why_unchecked


def prepare(recipe: Recipe) -> dict:
    """Run the stage and return documents/stats.json's content."""
    check_executor(recipe.data)
    index = load_benchmarks(recipe)
    earlier = list_earlier_documents(recipe.data.near_duplicates.against if recipe.data.near_duplicates else [])
    names = [source.name for source in recipe.data.sources]
    with new_output(recipe, "prepare") as output:
        work = output / "work"
        data = pin_revisions(recipe.data, work / "commits.json")
        parts = plan_parts(data)
        tasks = len(parts)
        total_bytes = sum(unit.size_bytes for _, units in parts for unit in units)

        def run(name: str, pipeline: list, tasks: int = tasks, total_bytes: int | None = None) -> None:
            run_pipeline(pipeline, tasks, data, work / "logs" / name, f"prepare: {name}", total_bytes)

        # Each document by itself: read, cleaned, refused for what it is, rid of personal data.
        read = partial(read_part, data=data, parts=parts, work=work)
        run("read", [read, partial(write_documents, folder=work / "read")], total_bytes=total_bytes or None)
        counts = sum_counts(work / "counts", "read")
        if empty := [name for name in names if f"{name}/read" not in counts]:
            raise RecipeError(*(explain_empty(name, counts) for name in empty))
        read_bytes = sum(int(n[1]) for label, n in counts.items() if label.endswith("/read"))

        def followed(documents: list, name: str) -> list:
            return [*documents, partial(track, folder=work / "logs" / name / "progress")]

        documents = [ParquetReader(str(work / "read"))]
        common = {"counts": work / "counts", "sources": names}

        # Each document beside the others. Copies go first, or they would be taken for passages that are repeated.
        documents += find_exact_duplicates(run, documents, work / "exact", **common)
        if data.near_duplicates is not None:
            settings = {"settings": data.near_duplicates, "earlier": earlier, "total_bytes": read_bytes}
            listed = followed(documents, "signatures")
            documents += find_near_duplicates(run, listed, work / "near", **common, **settings)
        if data.repeated_passages is not None:
            settings = {"settings": data.repeated_passages, "min_document_bytes": data.min_document_bytes}
            settings["total_bytes"] = read_bytes
            listed = followed(documents, "passages")
            cut = find_repeated_passages(run, listed, work / "passages", work / "counts", **settings)
            run("cut", [*documents, cut, partial(write_documents, folder=work / "cut")])
            write_json(output / "repeated_passages.json", summarise(work / "passages"))
            documents = [ParquetReader(str(work / "cut"))]
            documents += find_exact_duplicates(run, documents, work / "exact_cut", name="cut_exact", **common)

        # Benchmark items are looked for last, in the text that is left, so that the report is about just that text.
        clean, count = [], partial(count_documents, folder=work / "counts")
        if index is not None:
            fraction, overlaps = data.decontamination.min_overlap_fraction, work / "overlaps"
            clean = [
                partial(count, name="overlap_in"),
                partial(drop_overlapping, index=index, min_overlap_fraction=fraction, folder=overlaps),
                partial(count, name="overlap_out"),
            ]
        note = partial(note_documents, folder=work / "notes", sources=names)
        run("keep", [*documents, *clean, note, partial(write_documents, folder=work / "kept")])

        held_out, families = plan_splits(work / "notes", work / "kept", data)
        write_json(work / "held_out.json", held_out)
        least_ids = least_trained(work / "notes", held_out, data)
        chosen = {"held_out": work / "held_out.json", "least_ids": least_ids, "splits": data.splits}
        write = partial(write_splits, folder=output, **chosen)
        run("split", [ParquetReader(str(work / "kept")), partial(write, counts=work / "counts")])

        stats = gather_stats(data.sources, work / "counts", describe_dates(work / "notes", names), families)
        stats["unchecked"] = why_unchecked(recipe)
        write_json(output / "stats.json", stats)
        decontamination = index and write_report(output / "decontamination.json", index, fraction, overlaps)
        write_data_card(recipe, output, stats, decontamination)
        refused = [path.read_text(encoding="utf-8") for path in sorted((work / "quarantine").iterdir())]
        (output / "quarantine.jsonl").write_text("".join(refused), encoding="utf-8")
        discard(work)
    return stats


def load_benchmarks(recipe: Recipe) -> BenchmarkIndex | None:
    """Index the benchmarks that the text is checked against; None where `why_unchecked` says why it is not.

    Raises: RecipeError: with the command that writes what is missing.
    """
    if why_unchecked(recipe) is not None:
        return None
    settings, folder, tasks = recipe.data.decontamination, benchmarks_folder(recipe), exported_tasks(recipe)
    missing = unexported_tasks(recipe) if settings.benchmarks is None else []
    if missing:
        raise RecipeError(
            f"data.decontamination: {folder} lacks the items of {', '.join(missing)}, which evaluation.tasks or "
            "training.eval_tasks names; recipes/run_recipe.py writes them, and of tasks that are no groups this does: "
            f"python eval/run_eval.py --tasks {','.join(tasks)} --export_requests {folder}"
        )
    try:
        return BenchmarkIndex(folder, settings.ngram_words)
    except (OSError, ValueError) as error:
        raise RecipeError(f"data.decontamination: {error}") from error


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    if options.dry_run:
        for source, units in plan_parts(recipe.data):
            print(f"{source.name}: {len(units)} files, {sum(unit.size_bytes for unit in units):,} bytes")
        return
    if is_finished(recipe, "prepare", options.overwrite):
        print(f"prepare: nothing to do, {recipe.run.output_dir}/documents is up to date")
        return
    stats = prepare(recipe)["sources"]
    kept = [split for source in stats.values() for split in source["kept"].values()]
    print(
        f"prepare: kept {sum(k['documents'] for k in kept):,} of "
        f"{sum(source['documents_in'] for source in stats.values()):,} documents, "
        f"{sum(k['bytes'] for k in kept) / 1e6:.1f} MB of {len(stats)} sources, "
        f"in {recipe.run.output_dir}/documents"
    )


if __name__ == "__main__":
    run_command(main)
