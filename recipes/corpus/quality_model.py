# SPDX-License-Identifier: Apache-2.0
"""Keep the part of a source that reads most like the team's own good documents: a linear model learns the difference.

In:   the documents that are left of all steps before, what is held out of them, and the recipe's data.quality_model.
Out:  documents/quality_scores.parquet: id, source and score of each training document of the `bad` sources, and
      whether it is kept; for stats.json, how the model was trained and how well it tells unseen documents apart.

The model is a logistic regression on hashed words and word pairs of passages, much as web text was chosen for GPT-3.
It learns from the training split alone: held-out documents and their families decide nothing. It drops training
documents alone, so models trained with and without it are scored on the same text.

The documents to learn from are chosen and sorted by their ids, and one process fits the weights, so these depend on
neither workers nor order. Scores grow with the likeness to good documents; at 0 the model is undecided.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from corpus.document_files import sampled_texts
from corpus.finished_tasks import note_written
from corpus.held_out import is_future, past_documents
from recipe_config import Data, QualityModel, RecipeError


SCORES = "quality_scores.parquet"  # in documents/
SCORE = np.dtype([("id", "S32"), ("source", "<u2"), ("num_bytes", "<u8"), ("score", "<f8"), ("held_out", "?")])
# A document is read at up to so many places, so that a long one counts no more than a page.
PASSAGE_CHARACTERS, MAX_PASSAGES = 2_000, 8
MAX_SAMPLE_BYTES = 20_000_000  # learnt from, of the good and of the bad sources
MIN_DOCUMENTS = 20  # to learn from, of the good and of the bad sources


def filter_by_model(
    run: Callable, documents: list, kept: Path, notes: Path, folder: Path, held_out: dict[str, str], data: Data
) -> tuple[np.ndarray, dict]:
    """Train the model, score the documents, and choose those to drop.

    Args:
        run: run(name, pipeline, tasks=...) of `prepare`.
        documents: steps that yield the documents.
        kept: folder of the documents.
        notes: folder that `note_documents` wrote of them.
        folder: for the files of this step; gets the file SCORES.
        held_out: document id -> split.
        data: sources, splits and quality_model.

    Returns: the sorted ids of the documents to drop; what stats.json says of the model.

    Raises: RecipeError: too few documents to learn from.
    """
    settings, names = data.quality_model, [source.name for source in data.sources]
    sample = choose_sample(notes, held_out, data)
    run("quality model", [partial(train, kept=kept, folder=folder, sample=sample)], tasks=1)
    score = partial(score_documents, folder=folder, data=data, held_out=set(held_out))
    run("quality scores", [*documents, score])
    scores = np.concatenate([np.load(file) for file in sorted((folder / "scores").glob("*.npy"))])
    good, bad = (np.isin(scores["source"], [names.index(name) for name in side]) for side in sides(settings))
    unseen = scores["held_out"] & (good | bad)
    judged = scores[bad & ~scores["held_out"]]
    keeps = choose_kept(judged, settings.keep_fraction)
    table = {"id": judged["id"].astype(str), "source": np.array(names)[judged["source"]], "score": judged["score"]}
    pq.write_table(pa.table(table | {"kept": keeps}), folder / SCORES, compression="zstd")
    return np.sort(judged["id"][~keeps]), {
        "good_documents": int(sum(sample.values())),
        "bad_documents": int(len(sample) - sum(sample.values())),
        "held_out_auc": float(roc_auc_score(good[unseen], scores["score"][unseen])),
        "least_score": {
            name: float(judged["score"][keeps & (judged["source"] == names.index(name))].min())
            for name in sides(settings)[1]
        },
    }


def sides(settings: QualityModel) -> tuple[list[str], list[str]]:
    """Return the names of the good sources and of the bad ones."""
    return settings.good, [settings.bad] if isinstance(settings.bad, str) else settings.bad


def choose_sample(notes: Path, held_out: dict[str, str], data: Data) -> dict[str, bool]:
    """Return document id -> good, of the training documents to learn from.

    Each source of a side gives as many bytes, as far as it has them, from the highest id down, as max_training_bytes
    does.

    Raises: RecipeError: too few documents.
    """
    names = [source.name for source in data.sources]
    sample, problems = {}, []
    for key, side in zip(("good", "bad"), sides(data.quality_model), strict=True):
        chosen = []
        for name in side:
            every = (np.load(file) for file in sorted(notes.glob("*.npy")))
            own = np.concatenate([found[found["source"] == names.index(name)] for found in every])
            own = np.sort(own[past_documents(own, data.splits)], order="id")[::-1]
            own = own[~np.isin(own["id"], np.array(list(held_out), dtype=own["id"].dtype))]
            chosen += own["id"][np.cumsum(own["num_bytes"]) <= MAX_SAMPLE_BYTES / len(side)].astype(str).tolist()
        if len(chosen) < MIN_DOCUMENTS:
            problems.append(
                f"data.quality_model.{key}: {', '.join(side)} leaves {len(chosen)} training documents to learn from; "
                f"{MIN_DOCUMENTS} are the least; add documents, or leave data.quality_model out"
            )
        sample |= dict.fromkeys(chosen, key == "good")
    if problems:
        raise RecipeError(*problems)
    return sample


def passages(text: str) -> list[str]:
    """Return up to MAX_PASSAGES passages, evenly spread from the beginning to the end of a text."""
    number = min(MAX_PASSAGES, -(-len(text) // PASSAGE_CHARACTERS))
    starts = np.linspace(0, max(0, len(text) - PASSAGE_CHARACTERS), number).astype(int)
    return [text[start : start + PASSAGE_CHARACTERS] for start in starts.tolist()]


def vectorizer() -> HashingVectorizer:
    return HashingVectorizer(ngram_range=(1, 2), n_features=1 << 20, token_pattern=r"\w+", alternate_sign=False)


def train(documents, rank: int, world_size: int, kept: Path, folder: Path, sample: dict[str, bool]) -> None:
    """Fit the model to the documents of a sample and write its weights, the last of which is the intercept."""
    texts = sampled_texts(kept, set(sample))
    pieces = [(piece, sample[name]) for name in sorted(texts) for piece in passages(texts[name])]
    model = LogisticRegression(C=10.0, solver="liblinear", class_weight="balanced", random_state=0)
    model.fit(vectorizer().transform(piece for piece, _ in pieces), [good for _, good in pieces])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "weights.npy", np.append(model.coef_[0], model.intercept_))
    note_written(folder / "weights.npy")


def score_documents(
    documents: Iterator[Document], rank: int, world_size: int, folder: Path, data: Data, held_out: set[str]
) -> None:
    """Write the SCOREs of a task's documents: those of the bad sources, and the held-out ones of the good."""
    weights, hashes, names = np.load(folder / "weights.npy"), vectorizer(), [source.name for source in data.sources]
    good, bad = sides(data.quality_model)
    scores = []
    for document in documents:
        source, unseen = document.metadata["source"], document.id in held_out
        wanted = source in bad or (source in good and unseen)
        if wanted and not is_future(document.metadata.get("date"), data.splits):
            logits = hashes.transform(passages(document.text)) @ weights[:-1] + weights[-1]
            scores.append((document.id, names.index(source), len(document.text.encode()), np.mean(logits), unseen))
    path = folder / "scores" / f"{rank:05d}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(scores, dtype=SCORE))
    note_written(path)


def choose_kept(scores: np.ndarray, keep_fraction: float) -> np.ndarray:
    """Return a mask of the documents to keep: of each source the best, up to a fraction of its bytes, at least one."""
    keeps = np.zeros(len(scores), dtype=bool)
    for source in np.unique(scores["source"]):
        own = np.flatnonzero(scores["source"] == source)
        best = own[np.lexsort((scores["id"][own], -scores["score"][own]))]
        before = np.cumsum(scores["num_bytes"][best]) - scores["num_bytes"][best]
        keeps[best[before < keep_fraction * scores["num_bytes"][own].sum()]] = True
    return keeps
