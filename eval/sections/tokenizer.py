# SPDX-License-Identifier: Apache-2.0
"""The tokenizer's report card: tokenizer/report.json, speed.json."""

from functools import partial

from matplotlib.figure import Figure

from figure_style import COLORS, HATCHES, WIDTH
from run_files import RunFiles, Section
from wording import count, decimals, heading, model_name, plain, table


OURS, BASELINE = "domain tokenizer", "general tokenizer"  # in report.json


def build(run: RunFiles) -> Section | None:
    report = run.json("tokenizer/report.json")
    if not report:
        return None
    names = tokenizer_names(run.yaml("recipe.yaml"))
    report, speed = rename(report, names), rename(run.json("tokenizer/speed.json"), names)
    card = report.get("card")
    figures = {}
    if card:
        figures["tokenizer"] = (
            card_figure(card["tokenizers"]),
            "Bytes per token of held-out text, and words and terms that are one token. Higher is better",
        )
    values = {"tokenizer": report, "card": card, "speed": speed, "names": names, "in_words": partial(in_words, names)}
    return Section("Tokenizer", values, figures, summarise(report))


def tokenizer_names(recipe: dict | None) -> dict[str, str]:
    """Return what the tokenizers in report.json are, {name there: description}, where the names do not say it.

    Of a tokenizer that was taken from a model, "domain tokenizer" is that one or, if the run extended it, the extended
    one; "general tokenizer" is then the one before.
    """
    settings, model = ((recipe or {}).get(key) or {} for key in ("tokenizer", "model"))
    taken = settings.get("from_pretrained") or model.get("from_pretrained")
    if not taken:
        return {}
    named = f"tokenizer of {model_name(taken)}"
    return {OURS: "extended tokenizer", BASELINE: named} if settings.get("extend_by") else {OURS: named}


def rename(value: object, names: dict[str, str]) -> object:
    """Return a report with the names of tokenizers, which are keys, replaced."""
    if isinstance(value, dict):
        renamed = {names.get(key, key): rename(part, names) for key, part in value.items()}
        return renamed | ({"about": in_words(names, renamed["about"])} if "about" in renamed else {})
    return value


def in_words(names: dict[str, str], sentence: str) -> str:
    for name, description in names.items():
        sentence = sentence.replace(name, description)
    return sentence


def summarise(report: dict) -> list[str]:
    measured = report["bytes_per_token"]
    names = list(measured)
    sources = list(dict.fromkeys(source for values in measured.values() for source in values))
    rows = [[plain(source), *(decimals(measured[name].get(source), 2) for name in names)] for source in sources]
    lines = [*heading("Bytes per token (higher is better: shorter sequences)"), *table(["source", *names], rows)]
    terms = report.get("terms") or {}
    splits = [
        [plain(term), *(pieces(by[name]) if name in by else "-" for name in names)] for term, by in terms.items()
    ]
    return lines + (["", *table(["term", *names], splits, left=1 + len(names))] if splits else [])


def pieces(tokens: list[str]) -> str:
    return plain("|".join(tokens))


def card_figure(tokenizers: dict[str, dict]) -> Figure:
    """Draw three groups of bars: bytes per token, words not split, terms kept whole; each higher is better."""
    panels = [
        ("bytes per token", lambda one: {domain: m["bytes_per_token"] for domain, m in one["domains"].items()}),
        (
            "words that are one token (%)",
            lambda one: {domain: whole_words(m["split_words_fraction"]) for domain, m in one["domains"].items()},
        ),
        (
            "terms without a space that are one token (%)",
            lambda one: {domain: 100 * (m["whole_fraction_without_space"] or 0) for domain, m in one["terms"].items()},
        ),
    ]
    panels = [panel for panel in panels if all(panel[1](one) for one in tokenizers.values())]
    figure = Figure(figsize=(WIDTH, 0.4 + 0.25 * len(tokenizers) + 1.5 * len(panels)))
    for axes, (title, measure) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        domains = list(measure(next(iter(tokenizers.values()))))
        width = 0.84 / len(tokenizers)
        for index, (name, one) in enumerate(tokenizers.items()):
            axes.bar(
                [position + (index - (len(tokenizers) - 1) / 2) * width for position in range(len(domains))],
                list(measure(one).values()),
                width,
                label=f"{plain(name)}, {count(one['vocab_size'])} tokens" if axes is figure.axes[0] else None,
                color=COLORS[index % len(COLORS)],
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor="white",
            )
        axes.set_xticks(range(len(domains)), [plain(domain) for domain in domains])
        axes.set_title(title)
        axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def whole_words(split_fraction: float | None) -> float:
    return 0.0 if split_fraction is None else 100 * (1 - split_fraction)
