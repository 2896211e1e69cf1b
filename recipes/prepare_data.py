# SPDX-License-Identifier: Apache-2.0
"""Stage 1: turn the sources of the recipe into clean, de-duplicated documents in disjoint splits.

In:   data.sources; extract_text(example, source) and, if it is there, redact(text, source) of the recipe's data.py;
      benchmarks/ of the run, which eval/run_eval.py writes first where it is missing.
Out:  <run.output_dir>/documents/<train|validation|test|future>/<source>/*.parquet with id, source, text, date,
      and, with data.family_containment, the family of each held-out document;
      documents/README.md, the data card; documents/stats.json with the files of each source, read and not read, and
      the documents and bytes read, kept, and dropped for each reason; documents/quality_scores.parquet with the scores
      of data.quality_model; documents/decontamination.json with the benchmark items that were searched for and found;
      documents/quarantine.jsonl with the position of everything that could not be read, and why.
      <run.output_dir>/dropped_samples.jsonl: documents dropped for each reason, for show_documents.py.

    python recipes/prepare_data.py --config recipes/legal/quickstart.yaml
    python recipes/prepare_data.py --config recipes/legal/base.yaml --data.workers=32

datatrove runs the steps, which are in corpus/, one a file. What a task reads depends on the names and sizes of the
files alone (corpus/reading_plan.py), so the output is the same, byte for byte, for any number of workers on any
machine.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from atomic_files import discard, write_json
from child_processes import EXIT_STOPPED, run_child
from corpus.accounting import count_documents, describe_dropped, explain_empty, gather_stats, sum_counts
from corpus.benchmark_overlap import BenchmarkIndex, drop_overlapping, write_report
from corpus.canaries import CANARIES, choose_canaries, plant_canaries
from corpus.data_card import write_data_card
from corpus.document_files import (
    PLACES,
    count_tasks,
    document_files,
    read_documents,
    read_renamed,
    write_documents,
    write_places,
)
from corpus.dropped_samples import SAMPLES, Samples, write_samples
from corpus.estimate import estimate
from corpus.exact_duplicates import find_exact_duplicates
from corpus.held_out import choose_held_out, describe_dates, lowest_training_ids, note_documents, write_splits
from corpus.local_executor import available_cores
from corpus.near_duplicates import find_near_duplicates, list_earlier_documents
from corpus.personal_data import Redactor
from corpus.pipeline_executor import check_executor, run_pipeline, track
from corpus.reading import find_surplus, load_extract_text, load_redact, pin_revisions, read_sources
from corpus.reading_plan import ReadingPlan, expect
from corpus.repeated_passages import find_repeated_passages, summarise
from corpus.stage_progress import StageProgress, weigh_steps
from recipe_config import Data, Recipe, RecipeError
from recipe_loading import parse_command_line, run_command
from recorded_files import recording
from recovery.run_lock import stage_lock
from run_folder import new_output
from sources.units import Listing, list_all_sources
from stages import STAGES, benchmarks_folder, output_folder, unexported_tasks, why_unchecked


COMMITS = ".commits.json"  # of the Hub datasets, which an interrupted try reads on at; afterwards stats.json has them
REPORTED_SECONDS = 60.0  # a pass that takes so long leaves a line with its rate: a log file keeps no bar


def prepare(recipe: Recipe) -> dict:
    """Run the stage and return the content of documents/stats.json."""
    check_executor(recipe.data)
    load_extract_text(recipe.data.extract_text)  # now, and not in a worker
    load_redact(recipe.data.extract_text)
    index = load_benchmarks(recipe)
    earlier = list_earlier_documents(recipe.data.near_duplicates.against if recipe.data.near_duplicates else [])
    names = [source.name for source in recipe.data.sources]
    commits = Path(recipe.run.output_dir) / COMMITS
    data = pin_revisions(recipe.data, commits)
    listings = list_files(data)
    with new_output(recipe, "prepare") as output:
        plan = ReadingPlan(data.sources, listings)
        work = resume_work(output / "work", plan.identity())
        counts = work / "counts"
        tasks_now = 0  # of the passes after reading: one for each file
        workers = data.workers or available_cores()
        stage = StageProgress(weigh_steps(data, workers, index is not None))
        to_read = sum(own.read_bytes for own in expect(ReadingPlan(data.sources, listings)).values())
        was_read = 0

        new_samples = partial(Samples, work / "samples", data.dropped_samples_bytes)

        def run(name: str, pipeline: list, tasks: int | None = None, total_bytes: int | None = None) -> None:
            nonlocal was_read
            started, step, part = time.monotonic(), name.partition(",")[0], (0.0, 1.0)
            if step == "read" and total_bytes and to_read:  # in rounds
                part = min(was_read / to_read, 1.0), min((was_read + total_bytes) / to_read, 1.0)
                was_read += total_bytes
            stage.begin(step, part)
            run_pipeline(
                pipeline, tasks or tasks_now, data, work / "logs" / name, f"prepare: {name}", total_bytes, stage
            )
            if (seconds := time.monotonic() - started) >= REPORTED_SECONDS:
                rate = f", {total_bytes / seconds / 1e6:.1f} MB/s" if total_bytes else ""
                print(f"prepare: {name}: {seconds / 60:.1f} minutes{rate}; {stage.describe()}", flush=True)

        def with_progress(documents: list, name: str) -> list:
            read, *steps = documents  # counted before the steps drop some
            return [read, partial(track, folder=work / "logs" / name / "progress"), *steps]

        # Read and clean each document by itself, without comparing it to others.
        read_sources(run, data, plan, work, new_samples)
        read_counts = sum_counts(counts, "read")
        if empty := [name for name in names if f"{name}/read" not in read_counts]:
            raise RecipeError(*(explain_empty(name, read_counts) for name in empty))
        read_bytes = sum(int(n[1]) for label, n in read_counts.items() if label.endswith("/read"))
        documents, tasks_now = [partial(read_documents, folder=work / "read")], count_tasks(work / "read")

        # Drop exact duplicates, before passages are counted: copies of a document share all of its passages.
        surplus = find_surplus(data, work)
        documents += find_exact_duplicates(
            run, work / "read", work / "exact", counts, names, surplus, new_samples=new_samples
        )

        # Drop near-duplicates.
        if data.near_duplicates is not None:
            documents += find_near_duplicates(
                run,
                with_progress(documents, "signatures"),
                work / "near",
                counts,
                data.near_duplicates,
                sources=names,
                earlier=earlier,
                total_bytes=read_bytes,
                new_samples=new_samples,
            )

        # Remove repeated passages, then the exact duplicates that this makes.
        if data.repeated_passages is not None:
            remove_passages = find_repeated_passages(
                run,
                with_progress(documents, "passages"),
                work / "passages",
                counts,
                data.repeated_passages,
                data.min_document_bytes,
                total_bytes=read_bytes,
                new_samples=new_samples,
            )
            write = partial(write_documents, folder=work / "cut")
            run("cut", [*with_progress(documents, "cut"), remove_passages, write], total_bytes=read_bytes)
            read_bytes = None  # of fewer documents, and no pass has counted them
            write_json(output / "repeated_passages.json", summarise(work / "passages"))
            if not document_files(work / "cut"):
                raise RecipeError(
                    "data.repeated_passages: no document is left: all text is in passages that "
                    f"{data.repeated_passages.min_documents:,} documents share, or is too short without them; raise "
                    "min_documents, or name the sources to look in"
                )
            documents, tasks_now = [partial(read_documents, folder=work / "cut")], count_tasks(work / "cut")
            documents += find_exact_duplicates(
                run, work / "cut", work / "exact_cut", counts, names, name="cut_exact", new_samples=new_samples
            )

        # Drop benchmark items last, so that the report is about the text that is trained on.
        decontaminate, count = [], partial(count_documents, folder=counts)
        if index is not None:
            fraction, overlaps = data.decontamination.min_overlap_fraction, work / "overlaps"
            decontaminate = [
                partial(count, name="overlap_in"),
                partial(
                    drop_overlapping,
                    index=index,
                    min_overlap_fraction=fraction,
                    folder=overlaps,
                    new_samples=new_samples,
                ),
                partial(count, name="overlap_out"),
            ]
        note = partial(note_documents, folder=work / "notes", sources=names)
        keep = [
            *with_progress(documents, "keep"),
            *decontaminate,
            note,
            partial(write_documents, folder=work / "kept"),
        ]
        run("keep", keep, total_bytes=read_bytes)

        # Split.
        if data.family_containment is not None:
            stage.begin("families")
        held_out = choose_held_out(work / "notes", work / "kept", data)
        write_json(work / "held_out.json", held_out._asdict())
        kept, tasks_now = [partial(read_documents, folder=work / "kept")], count_tasks(work / "kept")
        model, refused = None, np.zeros(0, dtype="S32")
        if data.quality_model is not None:
            from corpus.quality_model import SCORES, filter_by_model  # only here: importing scikit-learn takes seconds

            folder = work / "quality_model"
            refused, model = filter_by_model(run, kept, work / "kept", work / "notes", folder, held_out.splits, data)
            (folder / SCORES).replace(output / SCORES)
        np.save(work / "refused.npy", refused)
        lowest_ids = lowest_training_ids(work / "notes", held_out.splits, refused, data)
        if data.canaries is not None:
            chosen = choose_canaries(work / "notes", held_out.splits, lowest_ids, refused, data)
            write_json(output / CANARIES, chosen)
            kept.append(partial(plant_canaries, chosen=output / CANARIES, counts=counts))
        split = partial(
            write_splits,
            folder=output,
            held_out=work / "held_out.json",
            lowest_ids=lowest_ids,
            refused=work / "refused.npy",
            splits=data.splits,
            counts=counts,
            new_samples=new_samples,
        )
        kept_bytes = sum(int(np.load(file)["num_bytes"].sum()) for file in (work / "notes").glob("*.npy"))
        run("split", [*with_progress(kept, "split"), split], total_bytes=kept_bytes)

        # Report.
        renamed = read_renamed(work / "passages" / "renamed")
        write_places(work / "places", renamed, output / PLACES)
        against = data.near_duplicates.against if data.near_duplicates else []
        with recording(output.parent, SAMPLES):
            write_samples(work / "samples", output.parent / SAMPLES, data.dropped_samples_bytes, renamed, against)
        files = {name: listing.inventory.as_stats() for name, listing in listings.items()}
        dates = describe_dates(work / "notes", names)
        stats = gather_stats(data.sources, counts, files, dates, held_out.num_families, held_out.num_divided)
        stats["unchecked"] = why_unchecked(recipe)
        if data.personal_data is not None:
            redactor = Redactor(data.personal_data.profile, data.personal_data.actions)
            stats["personal_data_kinds"] = list(redactor.actions)
        if model is not None:
            stats["quality_model"] = model
        write_json(output / "stats.json", stats)
        decontamination = index and write_report(output / "decontamination.json", index, fraction, overlaps)
        write_data_card(recipe, output, stats, decontamination)
        quarantined = [path.read_text(encoding="utf-8") for path in sorted((work / "quarantine").iterdir())]
        (output / "quarantine.jsonl").write_text("".join(quarantined), encoding="utf-8")
        discard(work)
    commits.unlink(missing_ok=True)
    return stats


def resume_work(work: Path, identity: str) -> Path:
    """Return the folder of an interrupted try, without what it holds if that was made of other tasks."""
    note = work / "identity"
    if work.exists() and (not note.exists() or note.read_bytes() != identity.encode()):
        discard(work)
    work.mkdir(exist_ok=True)
    note.write_text(identity)
    return work


def list_files(data: Data) -> dict[str, Listing]:
    """Print which files of each source are read and which are not, and return them."""
    listings = list_all_sources(data.sources)
    for listing in listings.values():
        print(listing.inventory.describe(), flush=True)
    return listings


def first_positions(quarantine: Path) -> dict[str, dict[str, str]]:
    """Return source -> wording of a reason -> the first position in quarantine.jsonl with it."""
    first: dict[str, dict[str, str]] = {}
    with quarantine.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            first.setdefault(entry["source"], {}).setdefault(entry["reason"], entry["position"])
    return first


def load_benchmarks(recipe: Recipe) -> BenchmarkIndex | None:
    """Return the index of the benchmarks to check the text against, or None if it is not checked (`why_unchecked`).

    The run's own are written first where one of them is missing.

    Raises: RecipeError: items cannot be written or read.
    """
    if why_unchecked(recipe) is not None:
        return None
    settings = recipe.data.decontamination
    if settings.benchmarks is None and (missing := unexported_tasks(recipe)):
        with new_output(recipe, "requests") as folder:
            command = [sys.executable, *STAGES["requests"].command(recipe), str(folder)]
            ended = run_child(command, launches=False)
            if ended.signal_name:
                sys.stderr.write(f"prepare: stopped on {ended.signal_name}; the same command starts it again\n")
                raise SystemExit(EXIT_STOPPED)
            if ended.status:
                raise RecipeError(
                    f"data.decontamination: the items of {', '.join(missing)} were not written, for the reason above; "
                    "start this where the Hub can be reached, or write them to a folder with eval/run_eval.py "
                    "--export_requests and its --task_data, and name it by data.decontamination.benchmarks"
                )
    try:
        return BenchmarkIndex(benchmarks_folder(recipe), settings.ngram_words)
    except (OSError, ValueError) as error:
        raise RecipeError(f"data.decontamination: {error}") from error


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    if options.dry_run:
        plan = ReadingPlan(recipe.data.sources, list_files(recipe.data))
        index = None if unexported_tasks(recipe) else load_benchmarks(recipe)
        workers = recipe.data.workers or available_cores()
        print(*(f"prepare: {line}" for line in estimate(plan, recipe.data, workers, index)), sep="\n")
        return
    with stage_lock(recipe, "prepare", options.overwrite) as has_work:
        if not has_work:
            print(f"prepare: nothing to do, {recipe.run.output_dir}/documents is up to date")
            return
        stats = prepare(recipe)["sources"]
    kept = [split for source in stats.values() for split in source["kept"].values()]
    print(
        f"prepare: kept {sum(k['documents'] for k in kept):,} of "
        f"{sum(source['documents_in'] for source in stats.values()):,} documents, "
        f"{sum(k['bytes'] for k in kept) / 1e6:.1f} MB from {len(stats)} sources, "
        f"in {recipe.run.output_dir}/documents"
    )
    first = first_positions(output_folder(recipe, "prepare") / "quarantine.jsonl")
    for name, entry in stats.items():
        documents = sum(split["documents"] for split in entry["kept"].values())
        undated = documents - entry["dated_documents"]
        if recipe.data.splits.future_from and undated:
            print(
                f"prepare: note: {name}: {undated:,} of {documents:,} documents have no date; of these, later ones "
                "than data.splits.future_from are trained on"
            )
        for line in describe_dropped(name, entry, first.get(name, {})):
            print(line)


if __name__ == "__main__":
    run_command(main)
