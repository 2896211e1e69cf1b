# SPDX-License-Identifier: Apache-2.0
"""The report of a small run folder, of one with pieces missing, and what it says about results that show nothing."""

import fcntl
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest
from run_file_keys import unknown_keys

import plan_run
import run_eval
from atomic_files import is_unchanged, read_record
from figure_style import MAX_POINTS, thinned
from intervals import wilson
from recipe_loading import load_recipe
from recorded_files import OF_REPORT, find_damaged_run_files, record_run_files
from recovery.run_lock import RunLockedError, run_lock
from report import SECTIONS, main, read_records
from results_folder import locked_run
from run_files import RunFiles
from run_folder import find_damaged_files, is_finished, record_stage
from sections import overview, reference
from sections.benchmarks import read_baselines, task_sentence
from sections.curves import tasks_figure
from sections.documents import funnel_shares
from sections.held_out_text import xz_sentence
from sections.samples import by_prompt
from sections.tokenizer import summarise
from wording import marked, rounded, table


ROOT = Path(__file__).parent.parent.parent
PNG = b"\x89PNG\r\n"
FILES = {
    "documents": "documents/stats.json",
    "decontamination": "documents/decontamination.json",
    "tokenizer": "tokenizer/report.json",
    "training": "training.json",
    "preflight": "preflight.json",
    "metrics": "metrics.jsonl",
    "chronicle": "chronicle.jsonl",
    "training_samples": "samples.jsonl",
    "results": "eval/results.json",
    "audit": "audit.json",
}
EVENTS = [
    {"time": "2026-01-02T03:04:05Z", "event": event, "step": step, "text": text}
    for event, step, text in (
        ("start", 0, "7,000,000 parameters"),
        ("note", 0, "the learning rate was cut once"),
        ("save", 100, "step_00000100"),
        ("resume", 100, "from step_00000100"),
        ("skip", 120, "a <b>spike</b>"),
        ("finish", 300, "done"),
    )
]
# What is not on the page without a file.
SHOWN_FROM = {
    "documents": ["documents", "personal_data"],
    "tokenizer": ["tokenizer"],
    "training": ["training", "mixture"],
    "metrics": ["curves"],
    "chronicle": ["chronicle"],
    "results": ["held_out_text", "benchmarks"],
}
HOSTILE_TEXT = " not <script>alert('x')</script> copy.\x1b[31m\n"


@cache
def plan():
    """Return a plan as plan_run makes it."""
    budget = ["--plan.flops=1e17", "--plan.domain_bytes=1e7", "--plan.general_bytes=1e7"]
    recipe = load_recipe([ROOT / "recipes" / "legal" / "base.yaml"], ["--run.output_dir=unused", *budget])
    return plan_run.make_plan(recipe, plan_run.find_device(recipe.plan.device))


def entry(domain, bits, xz=(2.9, 1.5, 1.1), interval=(1.3, 1.5)):
    kinds = dict(zip(("xz_documents", "xz_stream", "xz_primed"), xz, strict=True))
    sizes = {"documents": 120, "bytes": 901234, "tokens": 204000, "nats": 8.8e5}
    interval = list(interval) if interval else None
    return {"domain": domain, **sizes, "bits_per_byte": bits, "confidence_interval": interval, **kinds}


def task(accuracy, chance=0.25, items=96, few=4, constant=None):
    """A task's results, all but `few` of its items clean and those overlapping."""
    score = {"value": accuracy, "stderr": 0.044, "interval": [accuracy - 0.086, accuracy + 0.086], "chance": chance}
    score |= {"constant": constant, "constant_answer": constant and "<i>yes", "baseline": max(chance, constant or 0)}
    metrics = {"acc": score}
    scores = {"metrics": metrics, "chance": chance}
    groups = {"clean": scores | {"num_items": items - few}, "overlapping": {"metrics": None, "chance": chance}}
    groups["overlapping"]["num_items"] = few
    return scores | {"num_items": items, "version": 1.0, "by_overlap": groups}


def checked_task(items, overlapping):
    counts = {"overlapping_items": overlapping + 2, "overlapping_items_after_removal": overlapping}
    not_checkable = {"too_short": ["a"], "template": ["b", "c"]}
    removed = {"licenses": {"documents": 2, "bytes": 5150}}
    return counts | {"items": items, "checkable": items - 3, "not_checkable": not_checkable, "removed": removed}


def audit() -> dict:
    """Return what the report reads of an audit, with a finding that a page has to escape."""
    sides = {
        side: {"documents": 100, "continued": {"50": {"documents": number}}}
        for side, number in (("trained", 3), ("held_out", 0))
    }
    return {
        "made_from": {"model": "0" * 64},
        "settings": {"prompt_tokens": 50},
        "findings": ["3 of 100 <i>documents are continued."],
        "cannot_be_concluded": ["Other prompts may extract more."],
        "verbatim": sides | {"by_source": {"licenses": sides}},
    }


def write_run(folder):
    """Write a finished run's files as the stages do."""
    documents = {
        "sources": {
            name: {
                "domain": domain,
                "license": "CC-BY-4.0",
                "documents_in": 1300,
                "bytes_in": 14900000,
                "dropped": {
                    "exact duplicate": {"documents": 41, "bytes": 5000000},
                    "too short": {"documents": 9, "bytes": 900000},
                },
                "kept": {split: {"documents": 300, "bytes": 3000000} for split in ("train", "validation", "test")},
                "personal_data": {"email": 1234},
            }
            for name, domain in (("licenses", "legal"), ("wikipedia", "general"))
        }
    }
    documents["sources"]["licenses"] |= {
        "files": [
            {"ending": ".txt", "files": 1300, "bytes": 15_000_000, "not_read": None},
            {"ending": ".wpd", "files": 31_204, "bytes": 900, "not_read": "no reader; save it as .docx"},
        ],
        "converted": {"windows-1252": 17},
        "unread_pages": {"documents": 6, "pages": 41},
        "reasons": {"not UTF-8; perhaps mac-roman": {"documents": 5, "bytes": 700}},
    }
    documents["sources"]["wikipedia"] |= {"dated_documents": 7, "first_date": "1999", "last_date": "2024-02-29"}
    documents["sources"]["wikipedia"]["kept"]["future"] = {"documents": 17, "bytes": 170000}
    decontamination = {
        "settings": {"min_overlap_fraction": 0.5, "ngram_words": 13},
        "removed": {"licenses": {"documents": 3, "bytes": 6150}},
        "tasks": {"legal_sense": checked_task(96, 4), "general_agreement": checked_task(118, 0)},
    }
    tokenizer = {
        "vocab_size": 8192,
        "train_bytes": {"licenses": 9000000, "wikipedia": 4000000},
        "sample_bytes": {"licenses": 510000, "wikipedia": 490000},
        "bytes_per_token": {
            "domain tokenizer": {"licenses": 4.42, "wikipedia": 3.9},
            "general tokenizer": {"licenses": 2.79, "wikipedia": 4.1},
        },
        "terms": {
            "mens rea": {"domain tokenizer": ["m", "ens", " rea"], "general tokenizer": ["men", "s", " re", "a"]}
        },
    }
    training = {
        "parameters": {"total": 7000000, "embedding": 2100000, "non_embedding": 4900000},
        "sequence_length": 512,
        "tokens_per_step": 8192,
        "max_steps": 300,
        "tokens_seen": 2457600,
        "seconds": 754.2,
        "tokens_per_second": 3260.0,
        "flops": 7.2e13,
        "flops_convention": "6 x non-embedding parameters x tokens",
        "device": "cpu, 2 threads",
        "num_processes": 1,
        "mixed_precision": "bf16",
        "compiled": True,
        "mixture": {
            "licenses": mixture_entry(0.7, 0.69),
            "wikipedia": mixture_entry(0.3, 0.31),
        },
    }
    results = {
        "format": 2,
        "settings": {"split": "test", "context_length": 512, "stride": 256},
        "bits_per_byte": {
            "sources": {
                "licenses": entry("legal", 1.412) | {"families": 31},
                "wikipedia": entry("general", 2.13, (3.4, 2.0, None), None),
            },
            "domains": {"legal": entry("legal", 1.412), "general": entry("general", 2.13)},
            "context_lengths": {
                length: {key: value for key, value in entry("", bits).items() if key != "domain"}
                for length, bits in (("512", 1.4), ("1024", 1.9))
            },
        },
        "tasks": {"legal_sense": task(0.27), "general_agreement": task(0.71, chance=0.5, items=118)}
        | {"pubmedqa": task(0.45, chance=1 / 3, items=500, constant=0.552)}
        | {f"mmlu_{n}": task(0.3) | {"groups": ["mmlu"]} for n in range(2)},
        "groups": {},
        "group_parts": {
            "mmlu (2 of 57)": {"group": "mmlu", "score": "acc", "value": 0.3, "interval": [0.24, 0.36], "chance": 0.25}
            | {"constant": None, "baseline": 0.26, "num_tasks": 2, "num_members": 57}
        },
        "samples": [
            {
                "prompt": "The licensee shall",
                "text": " not <script>alert('x')</script> copy.\x1b[31m\n" + "And so on. " * 80,
            }
        ],
    }
    contents = {"documents": documents, "decontamination": decontamination, "tokenizer": tokenizer}
    checks = [{"name": "label shift", "passed": True, "found": "<i>as it", "expected": "should be"}]
    contents |= {"training": training, "preflight": {"checks": checks}, "results": results, "audit": audit()}
    for name, content in contents.items():
        (folder / FILES[name]).parent.mkdir(parents=True, exist_ok=True)
        (folder / FILES[name]).write_text(json.dumps(content))
    (folder / "plan.json").write_text(json.dumps(plan()))
    (folder / FILES["metrics"]).write_text("".join(json.dumps(line) + "\n" for line in metric_lines(300)))
    written = [
        {"step": step, "prompt": "The <i>court", "text": f" {'the ' * step}"[:40] + f"<b>{step}"}
        for step in range(10, 90, 10)
    ]
    (folder / FILES["training_samples"]).write_text("".join(json.dumps(line) + "\n" for line in written))
    (folder / FILES["chronicle"]).write_text("".join(json.dumps(entry) + "\n" for entry in EVENTS))
    (folder / "model").mkdir()


def mixture_entry(asked, delivered):
    seen = {"bytes_seen": 9000000, "tokens_seen": 2000000, "repetitions": 0.9, "expected_deviation_fraction": 0.0123}
    return {"asked_fraction": asked, "delivered_fraction": delivered, **seen}


def metric_lines(steps):
    for step in range(1, steps + 1):
        seen = {"step": step, "train/tokens_seen": 8192 * step, "train/bytes_seen": 33000 * step}
        loss = 2.5 + 6.5 / (1 + step / 20)
        rate = 1e-3 * min(step / 30, 1.0)
        yield seen | {
            "train/loss": loss,
            "train/bits_per_byte": loss / 2.8,
            "train/grad_norm": 1.0,
            "train/learning_rate": rate,
            "train/tokens_per_second": 3000 + step,
            "train/utilisation_hardware_fraction": 0.41,
            "train/utilisation_6nd_fraction": 0.38,
            "train/peak_memory_bytes": 1.2e9 + step,
        }
        if step % 50 == 0:
            delivered = {"data/share/licenses": 0.7 - 0.5 / step, "data/share/wikipedia": 0.3 + 0.5 / step}
            delivered |= {"data/asked/licenses": 0.7, "data/asked/wikipedia": 0.3}
            delivered |= {"eval/legal_sense/accuracy": 0.25 + step / 2000, "eval/legal_sense/chance": 0.25}
            delivered |= {"eval/legal_sense/gold_bits_per_byte": 3 - step / 200, "eval/legal_sense/num_items": 96}
            delivered |= {"eval/legal_sense/baseline": 0.25}
            delivered |= {"data/repetitions/licenses": step / 400, "data/repetitions/wikipedia": step / 100}
            yield (
                seen
                | delivered
                | {
                    f"eval/{kind}/{source}": loss / scale * shift
                    for kind, scale in (("loss", 1.0), ("bits_per_byte", 2.8))
                    for source, shift in (("licenses", 0.97), ("wikipedia", 1.2))
                }
            )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny-run"
    folder.mkdir()
    write_run(folder)
    main([str(folder)])
    return folder


def test_report_holds_every_section_and_loads_nothing(run_folder):
    page = (run_folder / "report.html").read_text()
    names = [module.__name__.removeprefix("sections.") for module in SECTIONS if module is not reference]
    assert re.findall(r'<section id="(\w+)">', page) == names
    assert "Not in this run folder" not in page
    for text in (
        "trained on a sample of 510,000 bytes of licenses, 490,000 bytes of wikipedia.",
        "7,000,000",
        "14,900,000",
        "exact duplicate",
        '31,204</td><td>900</td><td class="text long">not read: no reader; save it as .docx',
        "converted to UTF-8 from windows-1252",
        '<td class="text">.pdf</td><td>6</td><td>-</td><td class="text long">of these, without the text of 41 pages',
        '<td>5</td><td>700</td><td class="text long">not UTF-8; perhaps mac-roman',
        "69.00 %",
        "1.23 points",
        "69.83 %",
        "3.00 times",
        "1,234",
        "3 of licenses (6,150 bytes).",
        "<td>96</td><td>93</td><td>1</td><td>2</td><td>6</td><td>2</td><td>4</td>",
        '<td class="text">overlapping</td><td>4</td><td class="text">too few to score',
        "<li>overlapping: they share runs of words with the training text.</li>",
        '<td>92</td><td class="text">acc</td><td>0.270</td>',
        "future 17",
        f"<td>{plan()['parameters']['total']:,}</td><td>7,000,000</td>",
        f"<th>compute (FLOPs)</th><td>{plan()['flops']['training']:.3g}</td><td>7.2e+13</td>",
        f"Advice: {plan()['verdict']['choice']}.",
        "Marked in the figures: resume 1, skip 1.",
        "1999 to 2024-02-29",
        '<th>licenses</th><td class="text">legal</td><td>120 in 31 families</td><td>901,234</td>',
        "4.42",
        "m|ens| rea",
        "After &ldquo;The &lt;i&gt;court&rdquo;",
        "&lt;b&gt;80</td>",
        "1.412",
        "0.270",
        "12 min 34 s",
        "start 1, note 1, save 1, resume 1, skip 1, finish 1. Times are UTC.",
        '<td>120</td><td class="text">skip</td><td class="text long">a &lt;b&gt;spike&lt;/b&gt;</td>',
        '<th>label shift</th><td class="text">yes</td><td class="text">&lt;i&gt;as it</td>',
    ):
        assert text in page
    for path in FILES.values():
        assert f'<a href="{path}"><code>{path}</code></a>' in page
    assert page.count("data:image/png;base64,") == 11
    links = set(re.findall(r'href="([^"]*)"', page))
    assert links == {*FILES.values(), "plan.json", *(f"#{name}" for name in names)}
    assert not re.search(r"""(src=["'](?!data:)|url\()""", page)


def test_first_screen_answers_the_four_questions(run_folder):
    page = (run_folder / "report.html").read_text()
    screen = page[page.index('<section id="overview">') : page.index("</section>")]
    assert re.findall("<h3>(.*?)</h3>", screen) == [
        "What was trained",
        "Is it any good?",
        "What went wrong",
        "What to do next",
    ]
    for text in (
        "18 million bytes of text, 69 % licenses and 31 % wikipedia, by 1 process (cpu, 2 threads).",
        "<dt>parameters</dt><dd>7 million</dd>",
        "licenses: Better than 1 of 3 baselines",
        "On held-out text the model needs 1.41 bits per byte (95 % interval 1.30 to 1.50). It beats xz of each "
        "document alone (2.90). It is level with xz of the text as one stream (1.50). It does not yet beat xz that "
        "holds the training text (1.10).",
        "general_agreement: acc of 0.710 is above chance (0.500).",
        "legal_sense: acc of 0.270 is above chance (0.250), within noise: it shows nothing yet.",
        "pubmedqa: acc of 0.450 is below the best constant answer, &#34;&lt;i&gt;yes&#34; (0.552).",
        "mmlu (2 of 57): acc of 0.300 is above the baseline (0.260), within noise: it shows nothing yet.",
        "The tokenizer needs 37 % fewer tokens on licenses and 5 % more tokens on wikipedia",
        "1 optimizer step was skipped; see the event log.",
        "Training: the learning rate was cut once.",
        "--baselines HuggingFaceTB/SmolLM2-135M",
        "--training.max_tokens=4915200",
        "python recipes/verify_run.py path/to/tiny-run",
    ):
        assert text in screen, text


@pytest.mark.parametrize(
    ("compared", "level", "label"),
    [
        ({}, "unknown", "No baseline was measured"),
        ({"a": 2.0}, "good", "Better than the baseline measured"),
        ({"a": 2.0, "b": 1.6}, "good", "Better than every baseline measured"),
        ({"a": 2.0, "b": 1.4}, "mixed", "Better than 1 of 2 baselines"),
        ({"a": 2.0, "b": 1.0}, "mixed", "Better than 1 of 2 baselines"),
        ({"a": 1.35}, "bad", "Better than no baseline measured"),
        ({"a": 1.0, "b": 1.2}, "bad", "Better than no baseline measured"),
    ],
)
def test_a_verdict_counts_only_what_is_outside_the_interval(compared, level, label):
    verdict = overview.judge("law", entry("legal", 1.4, interval=(1.3, 1.5)), compared, {})
    assert (verdict.level, verdict.label) == (level, label)
    assert all(f"{what} ({value:.2f})" in verdict.text for what, value in compared.items())


def test_nothing_is_claimed_of_a_difference_without_an_interval():
    one = entry("legal", 1.4, interval=None)
    verdict = overview.judge("law", one, {"a": 2.0, "b": 1.0, "xz": 3.0}, {"a": None, "b": None})
    assert (verdict.level, verdict.label) == ("unknown", "Too few documents to compare")
    assert "It beats" not in verdict.text and "One document, or one family of them, cannot tell it" in verdict.text
    assert "a (2.00), b (1.00) or xz (3.00)" in verdict.text
    verdict = overview.judge("law", one, {"a": 2.0, "b": 1.0}, {"a": [0.5, 0.7], "b": None})
    assert (verdict.level, verdict.label) == ("mixed", "Better than 1 of 2 baselines")


def write_documents(folder, bits, size_bytes=100, family=None):
    """Write an evaluation of documents that need these bits per byte, of sources of one domain."""
    (folder / "items").mkdir(parents=True)
    sources = {}
    for source, needed in bits.items():
        lines = [
            {"id": f"{source}-{n}", "family": family, "bytes": size_bytes, "nats": each * size_bytes * math.log(2)}
            for n, each in enumerate(needed)
        ]
        (folder / "items" / f"documents.{source}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources[source] = entry("legal", sum(needed) / len(needed), interval=(min(needed), max(needed)))
    every = [each for needed in bits.values() for each in needed]
    whole = entry("legal", sum(every) / len(every), interval=(min(every), max(every)))
    scored = {"sources": sources, "domains": {"legal": whole}}
    results = {"model": f"models/{folder.name}", "settings": {}, "bits_per_byte": scored}
    (folder / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([0.10, 0.12, 0.09, 0.11, 0.10, 0.08], "It beats models/base"),
        ([-0.10, -0.12, -0.09, -0.11, -0.10, -0.08], "It does not yet beat models/base"),
        ([0.30, -0.25, 0.09, -0.11, 0.10, -0.08], "It is level with models/base"),
    ],
)
@pytest.mark.parametrize("part", ["rulings", "legal"])
def test_a_model_is_compared_with_another_on_the_same_documents(tmp_path, more, words, part):
    ours = [0.5, 0.9, 1.4, 2.0, 2.6, 3.1]  # so far apart that the interval of the mean holds every baseline
    other = [mine + each for mine, each in zip(ours, more, strict=True)]
    write_documents(tmp_path / "eval", {"rulings": ours, "statutes": ours})
    write_documents(tmp_path / "eval" / "baselines" / "base", {"rulings": other, "statutes": other})
    run = RunFiles(tmp_path)
    results, baselines = run.json("eval/results.json"), read_baselines(run)
    kind = "domains" if part == "legal" else "sources"
    differences = overview.paired_intervals(run, results, kind, part, baselines)
    low, high = differences["models/base"]
    assert low <= sum(more) / len(more) <= high
    one = entry("legal", 1.75, interval=(0.9, 2.6))
    text = overview.judge(part, one, {"models/base": sum(other) / 6}, differences).text
    assert f"{words} ({sum(other) / 6:.2f}, the difference {low:.2f} to {high:.2f})" in text


def test_a_domain_of_many_sources_is_compared_as_a_whole_where_a_source_has_its_name(tmp_path):
    names = ["legal", "rulings", "statutes", "treaties", "opinions"]
    ours = {name: [1.0, 1.2, 1.4, 1.6] for name in names}
    theirs = {name: [each + (1.0 if name == "legal" else -0.5) for each in needed] for name, needed in ours.items()}
    write_documents(tmp_path / "eval", ours)
    write_documents(tmp_path / "eval" / "baselines" / "base", theirs)
    run = RunFiles(tmp_path)
    results, baselines = run.json("eval/results.json"), read_baselines(run)
    part = overview.judged_part(results)
    assert part == "domains"
    (whole,) = results["bits_per_byte"][part].values()
    assert overview.others(part, "legal", whole, baselines)["models/base"] == pytest.approx(1.3 - 0.2)
    low, high = overview.paired_intervals(run, results, part, "legal", baselines)["models/base"]
    assert low < -0.2 < high < 1.0
    assert overview.others("sources", "legal", whole, baselines)["models/base"] == pytest.approx(2.3)


def test_the_difference_of_one_family_of_documents_is_unknown(tmp_path):
    write_documents(tmp_path / "eval", {"rulings": [1.0, 1.2]}, family=3)
    write_documents(tmp_path / "eval" / "baselines" / "base", {"rulings": [2.0, 2.2]}, family=3)
    run = RunFiles(tmp_path)
    results, baselines = run.json("eval/results.json"), read_baselines(run)
    assert overview.paired_intervals(run, results, "sources", "rulings", baselines) == {"models/base": None}


def words_of(command):
    """Return the words of the first of a report's commands."""
    return shlex.split(command.replace("\\\n", " ").splitlines()[0])


def test_the_command_for_a_baseline_repeats_the_evaluation_with_its_own_settings(evaluated_run, tmp_path):
    run = evaluated_run.copy(tmp_path / "run").output_dir
    results = json.loads((run / "eval" / "results.json").read_text())
    recipe = load_recipe([run / "recipe.yaml"], [f"--run.output_dir={run}"])
    record_stage(recipe, "evaluate")
    assert is_finished(recipe, "evaluate")
    words = words_of(overview.baseline_command(RunFiles(run), results))
    assert words[:4] == ["python", "recipes/run_recipe.py", "--config", "path/to/run/recipe.yaml"]
    again = load_recipe([run / "recipe.yaml"], [f"--run.output_dir={run}", *words[4:]])
    assert again.evaluation.baselines == [overview.EXAMPLE_BASELINE]
    assert again.evaluation.model_copy(update={"baselines": []}) == recipe.evaluation
    assert not is_finished(again, "evaluate"), "it is evaluated anew"

    (run / "recipe.yaml").unlink()
    given = run_eval.parse_arguments(words_of(overview.baseline_command(RunFiles(run), results))[2:])
    asked = results["settings"]
    for name in ("split", "max_bytes_per_source", "batch_size", "dtype", "context_length", "seed", "num_fewshot"):
        assert getattr(given, name) == asked[name], name
    assert given.tasks == asked["tasks"] and given.stride is None
    assert given.prompts == [sample["prompt"] for sample in results["samples"]]
    results["settings"] |= {"stride": 8, "num_fewshot": 3, "decontamination_sha256": "0" * 64, "seed": 5}
    given = run_eval.parse_arguments(words_of(overview.baseline_command(RunFiles(run), results))[2:])
    assert (given.stride, given.num_fewshot, given.seed) == (8, 3, 5)
    assert given.decontamination == Path("path/to/run/documents/decontamination.json")


def problems(folder):
    return [problem["text"] for problem in overview.find_problems(RunFiles(folder))]


def test_what_went_wrong_is_named_the_worst_first(tmp_path):
    write_run(tmp_path)
    assert problems(tmp_path) == [
        "1 optimizer step was skipped; see the event log.",
        "Training: the learning rate was cut once.",
        f"The plan holds {len(plan()['warnings'])} warnings.",
    ]
    events = [("rollback", "back to step 50"), ("skip", "a"), ("skip", "b"), *(("warning", f"w{n}") for n in range(5))]
    lines = [json.dumps({"time": "", "event": event, "step": 1, "text": text}) for event, text in events]
    (tmp_path / "chronicle.jsonl").write_text("\n".join(lines) + "\n")
    status = {"status": "failed", "step": 12, "max_steps": 300, "reason": "out of memory"}
    (tmp_path / "status.json").write_text(json.dumps(status))
    (tmp_path / "documents" / "quarantine.jsonl").write_text("{}\n{}\n")
    (tmp_path / "documents" / "decontamination.json").unlink()
    (tmp_path / "preflight.json").write_text(json.dumps({"checks": [{"name": "label shift", "passed": False}]}))
    (tmp_path / "recipe.yaml").write_text("evaluation: {tasks: [legal_sense, casehold, legal]}\ndata: {a: 1}\n")
    found = problems(tmp_path)
    assert found[:4] == [
        "Training is not finished: status failed at step 12 of 300; out of memory.",
        "Training went back to a checkpoint once; see the event log.",
        "Checks before training that failed: label shift.",
        "The recipe lists benchmark tasks that were not run: casehold.",
    ]
    for text in (
        "2 optimizer steps were skipped; see the event log.",
        "Warning in training: w2",
        "2 more warnings are in the event log.",
        "2 documents could not be read; `documents/quarantine.jsonl` says which and why.",
        "The text was not checked against benchmarks: there is no `documents/decontamination.json`.",
        "Personal data was not looked for: the recipe does not set `data.personal_data`.",
    ):
        assert text in found


def test_items_and_beginnings_that_were_not_read_are_counted(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "eval" / "results.json"
    results = json.loads(path.read_text())
    name, task = next(iter(results["tasks"].items()))
    task |= {"left_out": 2, "truncated": 3}
    path.write_text(json.dumps(results))
    not_scored = "items are not scored: a continuation alone is longer than the context."
    found = problems(tmp_path)
    assert f"2 of {task['num_items'] + 2} items of {name} are not scored" in " ".join(found)
    assert f"Requests were longer than the context and lost their beginning: {name}." in found
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert f"{name}: 2 {not_scored}" in page
    assert f"{name}: 3 requests were longer than the context and lost their beginning." in page


def test_an_unfinished_run_is_told_how_to_finish(tmp_path):
    write_run(tmp_path)
    (tmp_path / "eval" / "results.json").unlink()
    (tmp_path / "recipe.yaml").write_text("model: {from_pretrained: some/base}\n")
    steps = overview.list_next_steps(RunFiles(tmp_path), [], {})
    assert [step["command"] for step in steps] == [
        f"python recipes/run_recipe.py --config path/to/{tmp_path.name}/recipe.yaml"
    ]
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "A language model that continues some/base, trained on" in page
    assert "The held-out text was not scored, so the quality of the model is unknown." in page


def test_a_command_puts_each_option_on_a_line_and_quotes_what_a_shell_would_read():
    assert overview.shell(["python", "x.py", "--a", "b c", "--d=e"]) == "python x.py --a 'b c' \\\n  --d=e"
    words = ["python", "x.py", "--prompts", "it's; $HOME"]
    line = overview.shell(words)
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == words


def test_numbers_and_code_in_sentences():
    assert [rounded(value) for value in (842, 204_800, 5_310_720, 1.2e9)] == [
        "842",
        "204,800",
        "5.31 million",
        "1.2 billion",
    ]
    assert str(marked("see `a.json`, <b>`x<y`")) == "see <code>a.json</code>, &lt;b&gt;<code>x&lt;y</code>"


def test_the_files_written_by_hand_here_have_the_keys_that_the_stages_write(evaluated_run, tmp_path):
    write_run(tmp_path)
    files = [path for name, path in FILES.items() if name != "audit"]  # which evaluated_run has none of
    assert unknown_keys(tmp_path, evaluated_run.output_dir, files) == {}


def test_a_real_run_is_reported_from_the_files_that_the_stages_write(evaluated_run, tmp_path):
    run = evaluated_run.copy(tmp_path / "run").output_dir
    main([str(run)])
    page = (run / "report.html").read_text()
    names = re.findall(r'<section id="(\w+)">', page)
    expected = ["overview", "held_out_text", "samples", "training", "curves", "mixture", "tokenizer", "documents"]
    assert [name for name in names if name in expected] == expected and "preflight" in names
    assert "A language model trained from scratch on" in page and "<dt>optimizer steps</dt><dd>20</dd>" in page
    # A model is level with itself.
    assert page.count("It is level with") == 2
    assert "Training is not finished" not in page and "Not in this run folder" not in page


def test_a_report_made_by_hand_is_in_the_record_of_the_run_and_other_damage_stays_seen(evaluated_run, tmp_path):
    run = evaluated_run.copy(tmp_path / "run").output_dir
    recipe = load_recipe([run / "recipe.yaml"], [f"--run.output_dir={run}"])
    main([str(run), "--save_reference", str(tmp_path / "curve.csv")])
    record_stage(recipe, "report")
    record_run_files(run, OF_REPORT)
    recorded = {path: path.read_bytes() for path in (run / "figures/stage.json", run / "run_files.json")}
    (run / "environment.json").write_text("{}")
    main([str(run), "--reference", str(tmp_path / "curve.csv")])  # adds a section and a figure
    assert all(path.read_bytes() != before for path, before in recorded.items())
    assert list(find_damaged_run_files(run)) == ["environment.json"] and find_damaged_files(run / "figures") == []
    assert is_unchanged(read_record(run / "figures")) and is_finished(recipe, "report")
    record = run / "run_files.json"
    record.write_text(record.read_text().replace('"bytes": 2', '"bytes": 3', 1))
    assert record not in read_records(run) and list(find_damaged_run_files(run)) == ["run_files.json"]


def test_a_report_is_not_made_from_a_file_that_changed_since_its_stage_wrote_it(evaluated_run, tmp_path):
    run = evaluated_run.copy(tmp_path / "run").output_dir
    recipe = load_recipe([run / "recipe.yaml"], [f"--run.output_dir={run}"])
    for stage in ("prepare", "evaluate"):
        record_stage(recipe, stage)
    names = ("samples.jsonl", "metrics.jsonl", "training.json", "documents/stats.json", "eval/results.json")
    for name in names:
        whole = (run / name).read_bytes()
        place = whole.rindex(b"e")
        (run / name).write_bytes(whole[:place] + b"a" + whole[place + 1 :])
        with pytest.raises(SystemExit, match=f"{name} is not as it was written: .* Restore it from a copy"):
            main([str(run)])
        (run / name).write_bytes(whole)
    for name in ("run_files.json", "documents/stage.json"):
        whole = (run / name).read_text()
        (run / name).write_text(whole.replace('"bytes": ', '"bytes": 1', 1))
        with pytest.raises(SystemExit, match=f"{name} is not as it was written, so the files"):
            main([str(run)])
        (run / name).write_text(whole)
    assert not (run / "report.html").exists()
    main([str(run)])


def test_figures_are_small_images(run_folder):
    images = sorted((run_folder / "figures").iterdir())
    names = ["benchmarks", "bits_per_byte", "context_lengths", "funnel", "learning_rate", "loss", "mixture", "shares"]
    names += ["overview", "speed", "tasks"]
    assert [path.name for path in images] == [f"{name}.png" for name in sorted(names)]
    for path in images:
        assert path.read_bytes().startswith(PNG) and path.stat().st_size < 100_000


def write_curve(folder, steps, tokens_per_step, worse_fraction=0.0):
    """Write metrics.jsonl of a run that is validated every 100 steps, in the end so much worse than another."""
    folder.mkdir(exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        seen = {"step": step, "train/tokens_seen": step * tokens_per_step, "train/bytes_seen": 4 * step}
        bits = 1.5 + 200 / (step * tokens_per_step + 100)
        lines.append(
            seen | {"train/loss": bits, "train/bits_per_byte": bits, "train/learning_rate": 1.0, "train/grad_norm": 1}
        )
        if step % 100 == 0:
            lines.append(seen | {"eval/bits_per_byte": bits * (1 + worse_fraction * step / steps)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_is_compared_with_the_curve_of_another_at_equal_tokens(tmp_path, capsys):
    curve = tmp_path / "curve.csv"
    write_curve(tmp_path / "earlier", steps=200, tokens_per_step=1000)
    main([str(tmp_path / "earlier"), "--save_reference", str(curve)])
    assert curve.read_text().splitlines()[:2] == [
        "step,tokens,train_bits_per_byte,eval_bits_per_byte",
        "1,1000,1.68182,",
    ]
    main([str(tmp_path / "earlier"), "--reference", str(curve)])
    assert "Validation: 0.0 % above the reference at step 200 (" in " ".join(capsys.readouterr().out.split())
    write_curve(tmp_path / "later", steps=400, tokens_per_step=500, worse_fraction=0.0212)
    main([str(tmp_path / "later"), "--reference", str(curve)])
    said = " ".join(capsys.readouterr().out.split())
    assert "Validation: 2.1 % above the reference at step 400 (1.533, reference 1.501)." in said
    assert "Training: 0.0 % " in said and "learning rates decay" not in said
    page = (tmp_path / "later" / "report.html").read_text()
    assert '<section id="reference">' in page and "2.1 % above the reference" in page
    write_curve(tmp_path / "later", steps=300, tokens_per_step=500)
    main([str(tmp_path / "later"), "--reference", str(curve)])
    said = " ".join(capsys.readouterr().out.split())
    assert "saw 150,000 tokens and the reference 200,000, so their learning rates decay at different steps" in said


def test_a_reference_that_is_none_is_refused(tmp_path):
    write_run(tmp_path)
    with pytest.raises(SystemExit, match="there is no file .*curve.csv; --save_reference makes one"):
        main([str(tmp_path), "--reference", str(tmp_path / "curve.csv")])
    (tmp_path / "curve.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="not a curve: its first line is not step,tokens"):
        main([str(tmp_path), "--reference", str(tmp_path / "curve.csv")])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit, match="holds no validation, so it cannot be a reference"):
        main([str(tmp_path), "--save_reference", str(tmp_path / "curve.csv")])


def test_samples_of_training_are_of_a_few_steps_from_first_to_last():
    lines = [{"step": step, "prompt": prompt, "text": ""} for step in range(50, 5050, 50) for prompt in ("a", "b")]
    shown = by_prompt(lines)
    assert list(shown) == ["a", "b"]
    assert [line["step"] for line in shown["b"]] == [50, 1050, 2050, 3000, 4000, 5000]
    assert [line["step"] for line in by_prompt(lines[:4])["a"]] == [50, 100]
    assert by_prompt([]) == {}


def test_markup_in_a_sample_comes_out_as_text(run_folder):
    page = (run_folder / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_page_is_well_formed(run_folder):
    open_tags = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed((run_folder / "report.html").read_text())
    assert open_tags == []


def test_names_from_data_are_escaped_and_do_not_break_the_figures(tmp_path):
    write_run(tmp_path)
    for path in (
        "documents/stats.json",
        "documents/decontamination.json",
        "training.json",
        "eval/results.json",
        "tokenizer/report.json",
        "metrics.jsonl",
    ):
        text = (tmp_path / path).read_text()
        (tmp_path / path).write_text(text.replace("wikipedia", "<b>$x_{</b>"))
    main([str(tmp_path)])
    assert "<b>$x" not in (tmp_path / "report.html").read_text()


def test_summary_is_what_a_newcomer_needs(run_folder):
    summary = (run_folder / "summary.txt").read_text()
    assert "licenses   legal    901,234  1.412    2.900      1.500      1.100" in summary
    assert "2.130    3.400      2.000          -" in summary
    assert re.search(r"licenses +4\.42 +2\.79", summary)
    unwrapped = " ".join(summary.split())
    assert "licenses: the model (1.412) beats xz -9e of each document alone (2.900) and" in unwrapped
    assert "but not xz -9e primed with the training text (1.100)." in unwrapped
    assert "legal_sense, acc: 0.270 (0.184 to 0.356) over 96 items is above chance (0.250), within noise" in unwrapped
    assert "mmlu (2 of 57), mean of 2 tasks: 0.300 (0.240 to 0.360) is above the baseline" in unwrapped
    assert "general_agreement, acc: 0.710 (0.624 to 0.796) over 118 items is above chance" in unwrapped
    assert "by the tokens read at once: 1.400 with 512, 1.900 with 1,024." in unwrapped
    assert "mens rea  m|ens| rea        men|s| re|a" in summary
    assert "[The licensee shall] not <script>" in unwrapped and "\x1b" not in summary
    assert str(run_folder / "report.html") in summary and str(run_folder / "model") in summary
    assert "release" not in summary
    assert max(map(len, summary.splitlines()[:30])) <= 100


def test_summary_is_printed_and_names_the_card_once_there_is_one(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "README.md").write_text("card")
    main([str(tmp_path)])
    assert capsys.readouterr().out.strip() == (tmp_path / "summary.txt").read_text().strip()
    assert str(tmp_path / "release" / "README.md") in (tmp_path / "summary.txt").read_text()


@pytest.mark.parametrize("name", SHOWN_FROM)
def test_section_without_its_file_is_not_there_and_the_file_is_named(tmp_path, name):
    write_run(tmp_path)
    (tmp_path / FILES[name]).unlink()
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    names = [module.__name__.removeprefix("sections.") for module in SECTIONS if module is not reference]
    assert re.findall(r'<section id="(\w+)">', page) == [each for each in names if each not in SHOWN_FROM[name]]
    assert f"Not in this run folder, and so not reported: <code>{FILES[name]}</code>." in page
    assert f'href="{FILES[name]}"' not in page
    assert f"not reported: `{FILES[name]}`." in (tmp_path / "summary.txt").read_text()


def test_every_table_and_figure_links_the_file_its_numbers_stand_in(run_folder):
    page = (run_folder / "report.html").read_text()
    captions = re.findall(r"<caption>(.*?)</caption>|<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == page.count("<table") + page.count("<figure")
    for caption in captions:
        linked = re.findall(r'href="([^"]*)"', "".join(caption))
        assert linked and all((run_folder / path).is_file() for path in linked), caption


@pytest.mark.parametrize(
    ("reason", "said"), [("evaluation.tasks names none", "evaluation.tasks names none"), (None, "there is no")]
)
def test_text_that_was_not_checked_against_benchmarks_is_said_to_be_unchecked(tmp_path, reason, said):
    write_run(tmp_path)
    (tmp_path / FILES["decontamination"]).unlink()
    stats, results = (json.loads((tmp_path / FILES[name]).read_text()) for name in ("documents", "results"))
    for entry in stats["sources"].values():
        entry["personal_data"] = {}
    for scores in results["tasks"].values():
        scores["by_overlap"] = None
    (tmp_path / FILES["documents"]).write_text(json.dumps(stats | {"unchecked": reason}))
    (tmp_path / FILES["results"]).write_text(json.dumps(results))
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert f"The text was not checked against benchmarks: {said}" in page
    assert "Whether the training text holds items of these tasks is not known" in page
    assert "None was found. It is looked for only if the recipe sets" in page


def test_the_funnel_accounts_for_every_byte_under_a_few_names():
    reasons = {f"reason {index}": {"documents": 1, "bytes": index} for index in range(1, 9)}
    kept = {"train": {"bytes": 50}, "validation": {"bytes": 5}, "test": {"bytes": 4}, "future": {"bytes": 5}}
    few = {"dropped": {"reason 1": {"documents": 0, "bytes": 10}}, "kept": kept | {"train": {"bytes": 26}}}
    shares = funnel_shares({"a": {"bytes_in": 100, "dropped": reasons, "kept": kept}, "b": {"bytes_in": 50} | few})
    assert shares == {
        "kept: train": [50, 52],
        "kept: held out": [14, 28],
        "dropped: reason 1": [1, 20],
        "dropped: reason 8": [8, 0],
        "dropped: reason 7": [7, 0],
        "dropped: reason 6": [6, 0],
        "dropped: other reasons": [14, 0],
    }
    assert funnel_shares({"a": {"bytes_in": 0, "dropped": {}, "kept": {"train": {"bytes": 0}}}}) == {}


def test_run_without_a_general_tokenizer_xz_tasks_and_samples_is_reported(tmp_path):
    write_run(tmp_path)
    tokenizer = json.loads((tmp_path / FILES["tokenizer"]).read_text())
    del tokenizer["bytes_per_token"]["general tokenizer"], tokenizer["terms"]["mens rea"]["general tokenizer"]
    (tmp_path / FILES["tokenizer"]).write_text(json.dumps(tokenizer))
    results = json.loads((tmp_path / FILES["results"]).read_text())
    results |= {"tasks": {}, "samples": []}
    (tmp_path / FILES["training_samples"]).unlink()
    for source in results["bits_per_byte"]["sources"].values():
        source |= {"xz_documents": None, "xz_stream": None, "xz_primed": None}
    (tmp_path / FILES["results"]).write_text(json.dumps(results))
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert 'id="held_out_text"' in page and 'id="benchmarks"' not in page and 'id="samples"' not in page


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"model": {"from_pretrained": "some/base"}, "tokenizer": {"extend_by": 500}}, "tokenizer of some/base"),
        ({"model": {}, "tokenizer": {"from_pretrained": "a/b", "extend_by": 9}}, "tokenizer of a/b"),
        ({"model": {"from_pretrained": "/a/b/c"}, "tokenizer": {"extend_by": 9}}, "tokenizer of the local model c"),
    ],
)
def test_an_extended_tokenizer_and_the_one_before_are_named_as_such(tmp_path, recipe, named):
    write_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    measured = ROOT / "recipes" / "experiments" / "vocabulary_size" / "legal" / "tokenizer_report.json"
    shutil.copyfile(measured, tmp_path / FILES["tokenizer"])
    speeds = {"domain tokenizer": {"megabytes_per_second": 1.25}, "general tokenizer": {"megabytes_per_second": 2}}
    speeds |= dict.fromkeys(("tokenizer.model.v1", "tekken_240911.json"), {"megabytes_per_second": 3})
    (tmp_path / "tokenizer" / "speed.json").write_text(json.dumps(speeds))
    main([str(tmp_path)])
    page, summary = ((tmp_path / name).read_text() for name in ("report.html", "summary.txt"))
    section = page[page.index('<section id="tokenizer">') : page.index('<section id="documents">')]
    assert f"<th>extended tokenizer</th><th>{named}</th>" in section
    assert f"tokens: the {named} and tokens that were chosen on a sample from" in section
    assert f"<td>{1.25:.1f}</td><td>{2:.1f}</td>" in section, "the speeds keep their places"
    assert f"than the {named}, which it extends." in page and "/a/b/c" not in page
    assert f"extended tokenizer  {named}" in summary
    for text in (page, summary):
        assert "general tokenizer" not in text and "domain tokenizer" not in text and "general text alone" not in text


def test_a_tokenizer_that_was_taken_is_not_said_to_be_trained(tmp_path):
    write_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": {"from_pretrained": "some/base"}}))
    report = json.loads((tmp_path / FILES["tokenizer"]).read_text())
    del report["bytes_per_token"]["general tokenizer"]
    (tmp_path / FILES["tokenizer"]).write_text(json.dumps(report))
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "8,192 tokens: the tokenizer of some/base. This run did not train it." in page
    assert "trained on a sample" not in page and "<th>tokenizer of some/base</th>" in page


def test_what_the_models_took_that_it_learned_from_is_shown_beside_its_own(tmp_path):
    write_run(tmp_path)
    training = json.loads((tmp_path / FILES["training"]).read_text())
    member = {"tokens_seen": 2457600, "seconds": 400.0, "device_hours": 0.5, "device": "cpu"}
    training |= {"members_flops": 1.5e14, "members": [member] * 2}
    (tmp_path / FILES["training"]).write_text(json.dumps(training))
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    for expected in (
        "12 min 34 s, 3,260 tokens per second; 13 min 20 s before it for the models that it learned from<",
        "7.2e+13 FLOPs and 1.5e+14 for the models that it learned from (",
        "0.21 process hours and 1.00 for the models that it learned from;",
        f"<th>compute (FLOPs)</th><td>{plan()['flops']['training']:.3g}</td><td>2.22e+14</td>",
    ):
        assert expected in page


def test_tokenizers_report_card_is_shown_with_words_terms_numbers_and_speed(tmp_path):
    write_run(tmp_path)
    measured = ROOT / "recipes" / "experiments" / "vocabulary_size" / "legal" / "tokenizer_report.json"
    report = json.loads(measured.read_text())
    assert [line for line in summarise(report) if line.startswith("mens rea")]
    speed = {name: {"megabytes_per_second": 1.25} for name in report["card"]["tokenizers"]}
    (tmp_path / FILES["tokenizer"]).write_text(json.dumps(report))
    (tmp_path / "tokenizer" / "speed.json").write_text(json.dumps(speed))
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "tokenizer.png").exists()
    rows = dict(re.findall(r"<tr><th>([^<]+)</th><td>([^<]+)</td>", page))
    own = report["card"]["tokenizers"]["domain tokenizer"]
    assert rows["legal: tokens per word"] == f"{own['domains']['legal']['tokens_per_word']:.3f}"
    assert rows["438 legal terms: tokens per term"] == "3.16"
    assert rows["kept whole, of the 154 without a space"] == "54.5 %"
    assert rows["MB encoded a second, one thread"] == "1.2"
    assert "<th>5 F.3d 1298</th>" in page and "<th>12,500,000</th>" in page


def test_two_reports_of_one_run_are_the_same(run_folder):
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    main([str(run_folder)])
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


def test_figures_of_other_scripts_stay_and_outdated_ones_go(tmp_path):
    write_run(tmp_path)
    main([str(tmp_path)])
    (tmp_path / "figures" / "scaling_law.png").write_bytes(PNG)
    (tmp_path / FILES["training"]).unlink()
    main([str(tmp_path)])
    names = sorted(path.stem for path in (tmp_path / "figures").iterdir())
    assert names == [
        "benchmarks",
        "bits_per_byte",
        "context_lengths",
        "funnel",
        "learning_rate",
        "loss",
        "overview",
        "scaling_law",
        "speed",
        "tasks",
    ]


def test_resumed_metrics_count_once_and_a_torn_last_line_is_left_out(tmp_path):
    lines = [{"step": 1, "train/loss": 5.0}, {"step": 2, "train/loss": 4.0}, {"step": 2, "train/loss": 3.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "train/lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert [line["train/loss"] for line in RunFiles(tmp_path).metrics()["training"]] == [5.0, 3.5]
    (tmp_path / "metrics.jsonl").write_text(text + "\n" + json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match="metrics.jsonl: not valid JSON"):
        RunFiles(tmp_path).metrics()


def test_long_curves_are_thinned_by_averaging():
    lines = [{"step": step, "loss": float(step % 2)} for step in range(10 * MAX_POINTS)]
    x, y = thinned(lines, "loss", "step")
    assert len(x) == MAX_POINTS and set(y) == {0.5}


def test_sentences_say_what_was_beaten_and_what_was_not():
    assert xz_sentence("a", entry("x", 1.0)).endswith("and xz -9e primed with the training text (1.100).")
    assert xz_sentence("a", entry("x", 5.0)).startswith("a: the model (5.000) does not beat xz -9e of each document")
    assert xz_sentence("a", entry("x", 1.0, (None, None, None))) is None


@pytest.mark.parametrize(
    ("accuracy", "constant", "said"),
    [
        (0.27, None, "is above chance (0.250), within noise: it shows nothing yet."),
        (0.23, None, "is below chance (0.250), within noise: it shows nothing yet."),
        (0.25, None, "is level with chance (0.250), within noise: it shows nothing yet."),
        (0.5, None, "is above chance (0.250)."),
        (0.5, 0.2, "is above chance (0.250)."),
        (0.1, None, "is below chance (0.250)."),
        (0.5, 0.552, 'is below the best constant answer, "<i>yes" (0.552), within noise: it shows nothing yet.'),
        (0.4, 0.552, 'is below the best constant answer, "<i>yes" (0.552).'),
        (0.7, 0.552, 'is above the best constant answer, "<i>yes" (0.552).'),
    ],
)
def test_a_score_is_compared_with_guessing_or_the_best_constant_answer_whichever_is_better(accuracy, constant, said):
    assert task_sentence("pubmedqa", "acc", task(accuracy, constant=constant)).endswith(f"items {said}")


@pytest.mark.parametrize(("levels", "dotted"), [({"baseline": 0.552}, 0.552), ({}, 0.333)], ids=["now", "earlier_run"])
def test_a_task_scored_in_training_is_drawn_against_its_baseline_and_what_wilson_says_of_it(levels, dotted):
    line = {"train/bytes_seen": 1000, "accuracy": 0.5, "chance": 0.333, "num_items": 100, "gold_bits_per_byte": 2.0}
    line = {key if "/" in key else f"eval/pubmedqa/{key}": value for key, value in (line | levels).items()}
    upper = tasks_figure([line], ["pubmedqa"]).axes[0]
    assert [each.get_ydata()[0] for each in upper.lines if each.get_linestyle() == ":"] == [dotted]
    (band,) = upper.patches
    low, high = band.get_y(), band.get_y() + band.get_height()
    for right in range(101):
        interval = wilson(right, 100)
        assert (low <= right / 100 <= high) == (interval[0] <= dotted <= interval[1]), right


def test_a_score_of_an_earlier_format_is_compared_with_guessing():
    metrics = {"acc": {"value": 0.3, "stderr": 0.02}}
    found = task_sentence("legal_sense", "acc", {"metrics": metrics, "chance": 0.25, "num_items": 500})
    assert found == "legal_sense, acc: 0.300 (0.261 to 0.339) over 500 items is above chance (0.250)."


def test_baselines_and_parts_of_groups_stand_in_the_tables(run_folder):
    page = (run_folder / "report.html").read_text()
    row = '<td>0.333</td><td>0.552 (&ldquo;&lt;i&gt;yes&rdquo;)</td><td class="text">below</td><td>500</td>'
    assert row in page
    assert '<td>0.250</td><td>none</td><td class="text">above, within noise</td><td>96</td>' in page
    caption = page[page.index("Parts of groups: some tasks only") :]
    row = caption[caption.index("<tr><th>mmlu (2 of 57)") :].partition("</tr>")[0]
    assert re.findall(r"<td.*?>(?:<strong>)?(.*?)<", row) == [
        "acc",
        "0.300",
        "0.240 to 0.360",
        "0.250",
        "0.260",
        "above, within noise",
        "2",
    ]


def test_the_first_screen_and_the_summary_say_whether_a_model_that_exists_is_better(tmp_path):
    write_run(tmp_path)
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    context = results["settings"]["context_length"]
    for folder, length, bits in (("small", context, 0.85), ("small--long", 8192, 0.80)):
        other = json.loads(json.dumps(results)) | {"model": "org/small"}
        other["settings"]["context_length"] = length
        for entry in other["bits_per_byte"]["sources"].values():
            entry["bits_per_byte"] = bits
        (tmp_path / "eval" / "baselines" / folder).mkdir(parents=True)
        (tmp_path / "eval" / "baselines" / folder / "results.json").write_text(json.dumps(other))
    main([str(tmp_path)])
    page, summary = ((tmp_path / name).read_text() for name in ("report.html", "summary.txt"))
    screen = page[page.index('<section id="overview">') : page.index("</section>")]
    for text in (screen, re.sub(r"\s+", " ", summary)):
        assert "It does not yet beat org/small (0.85), org/small, 8,192 tokens (0.80)" in text


@pytest.mark.parametrize("named", [True, False], ids=["now", "earlier_evaluation"])
def test_two_revisions_of_one_baseline_are_both_shown(tmp_path, named):
    write_run(tmp_path)
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    for revision, bits in (("v1", 0.85), ("v2", 0.80)):
        other = json.loads(json.dumps(results)) | {"model": "org/small"}
        other |= {"name": f"org/small@{revision}"} if named else {}
        for entry in other["bits_per_byte"]["sources"].values():
            entry["bits_per_byte"] = bits
        (tmp_path / "eval" / "baselines" / f"org--small@{revision}").mkdir(parents=True)
        (tmp_path / "eval" / "baselines" / f"org--small@{revision}" / "results.json").write_text(json.dumps(other))
    main([str(tmp_path)])
    expected = ("org/small@v1", "org/small@v2") if named else ("org/small", "org/small (org--small@v2)")
    page = (tmp_path / "report.html").read_text()
    for section in ("overview", "held_out_text", "benchmarks"):
        shown = page[page.index(f'<section id="{section}">') :].partition("</section>")[0]
        assert all(name in shown for name in expected), section
    assert f"{expected[0]} (0.85), {expected[1]} (0.80)" in " ".join((tmp_path / "summary.txt").read_text().split())


def test_tables_keep_their_columns_under_one_another():
    lines = table(["source", "bytes"], [["a", "1,000"], ["longer name", "5"]])
    assert lines == ["source       bytes", "-----------  -----", "a            1,000", "longer name      5"]


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="is not a run folder: it holds none of documents/stats.json"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match="there is no such folder"):
        main([str(tmp_path / "absent")])


def test_damaged_file_is_named(tmp_path):
    write_run(tmp_path)
    (tmp_path / FILES["training"]).write_text("{")
    with pytest.raises(SystemExit, match="training.json: not valid JSON"):
        main([str(tmp_path)])


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the PATH")


def browse(page, *options):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    subprocess.run([*command, *options, page.as_uri()], check=True, capture_output=True, timeout=120)


@needs_chromium
@pytest.mark.parametrize("width", [500, 1200])
def test_page_is_drawn_and_does_not_reach_beyond_the_screen(run_folder, tmp_path, width):
    """The right edge stays white: a table that is too wide scrolls in a box of its own."""
    picture = tmp_path / "page.png"
    browse(run_folder / "report.html", f"--window-size={width},9000", f"--screenshot={picture}")
    image = matplotlib.image.imread(picture)[..., :3]
    assert image.shape[:2] == (9000, width)
    assert (image[:, -6:] > 0.99).all()
    assert (image < 0.5).any(axis=(1, 2)).sum() > 1500  # rows with text or figures


@needs_chromium
def test_page_prints(run_folder, tmp_path):
    browse(run_folder / "report.html", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("content", ["{}", "[]", '"text"', '{"files": 3}', "no JSON", "[" * 100_000])
def test_a_damaged_record_of_an_earlier_report_is_left_as_it_is(tmp_path, content):
    (tmp_path / "run_files.json").write_text(content)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "stage.json").write_text(content)
    assert read_records(tmp_path) == {}


NO_FLOCK = """import errno, fcntl
def no_flock(*_):
    raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = no_flock
"""
HOLD = """import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from recovery.run_lock import run_lock
with run_lock(pathlib.Path(sys.argv[2]), "pretrain"):
    print("held", flush=True)
    time.sleep(100)
"""
ENTER = """import pathlib, sys
sys.path.insert(0, sys.argv[1])
from results_folder import locked_run
with locked_run(pathlib.Path(sys.argv[2]), "report"):
    print("entered")
"""


@pytest.mark.parametrize("before", ["", NO_FLOCK], ids=["locks", "no locks"])
def test_a_report_and_an_evaluation_by_hand_are_refused_while_a_stage_works_in_the_run_folder(
    tmp_path, model_folder, monkeypatch, before
):
    if before:
        monkeypatch.setattr(fcntl, "flock", fcntl.flock)  # and restored at the end
        exec(before, {})
    (tmp_path / "recipe.yaml").write_text("run: {}\n")
    with run_lock(tmp_path, "report"):  # as run_recipe.py does, which starts the command
        command = [sys.executable, "-c", before + ENTER, str(ROOT / "eval"), str(tmp_path)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "entered\n"
    command = [sys.executable, "-c", before + HOLD, str(ROOT / "recipes"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        named = rf"is in use by process {other.pid} on \S+ \(pretrain\); wait for it"
        with pytest.raises(SystemExit, match=named):
            main([str(tmp_path)])
        evaluation = ["--model", str(model_folder), "--prompts", "The court", "--output", str(tmp_path / "eval")]
        with pytest.raises(SystemExit, match=named):
            run_eval.main(evaluation)
        other.kill()
    refused = pytest.raises(RunLockedError, match=r"is in use by process .* \(report, ")
    with locked_run(tmp_path, "report"), refused, run_lock(tmp_path, "pretrain"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
