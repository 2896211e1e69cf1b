# SPDX-License-Identifier: Apache-2.0
"""Turn published benchmark rows into items: one function for each form of row.

An item has an `id` and one of these forms:
    {"context", "choices", "gold"}         Which choice follows the context? gold is the index of the right one.
    {"contexts", "continuation", "gold"}   After which context is the continuation likeliest?
    {"context", "continuation"}            Does the model write the continuation greedily? (last-word cloze)
    {"context", "answer"}                  Is what the model writes, up to the end of the line, the answer?
Local files hold rows as published, or items.
"""

import re
from collections.abc import Callable


LETTERS = "ABCDEFGHIJ"


def lettered(question: str, options: list[str]) -> str:
    return "\n".join([question.strip(), *(f"{LETTERS[i]}. {option}" for i, option in enumerate(options)), "Answer:"])


def mmlu(row: dict) -> dict:
    """Hub: question, choices, answer (index). The authors' CSV: question, A, B, C, D, answer (letter)."""
    options = row["choices"] if "choices" in row else [row[letter] for letter in "ABCD"]
    gold = row["answer"] if isinstance(row["answer"], int) else LETTERS.index(row["answer"])
    return {"context": lettered(row["question"], options), "choices": list(LETTERS[: len(options)]), "gold": gold}


def arc(row: dict) -> dict:
    gold = row["choices"]["label"].index(row["answerKey"].strip())
    return {"context": f"Question: {row['question']}\nAnswer:", "choices": row["choices"]["text"], "gold": gold}


def openbookqa(row: dict) -> dict:
    gold = row["choices"]["label"].index(row["answerKey"].strip())
    return {"context": row["question_stem"], "choices": row["choices"]["text"], "gold": gold}


def hellaswag(row: dict) -> dict:
    def clean(text: str) -> str:
        """Remove WikiHow's markup, as lm-eval does."""
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"context": clean(context), "choices": [clean(end) for end in row["endings"]], "gold": int(row["label"])}


def piqa(row: dict) -> dict:
    return {
        "context": f"Question: {row['goal']}\nAnswer:",
        "choices": [row["sol1"], row["sol2"]],
        "gold": int(row["label"]),
    }


def winogrande(row: dict) -> dict:
    before, _, after = row["sentence"].partition("_")
    contexts = [before + row[option] for option in ("option1", "option2")]
    return {"contexts": contexts, "continuation": after.strip(), "gold": int(row["answer"]) - 1}


def boolq(row: dict) -> dict:
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    gold = row["label"] if "label" in row else row["answer"]
    return {"context": context, "choices": ["no", "yes"], "gold": int(gold)}


def lambada(row: dict) -> dict:
    context, _, word = row["text"].rpartition(" ") if "text" in row else (row["context"], "", row["continuation"])
    return {"context": context, "continuation": word}


def blimp(row: dict) -> dict:
    return {"context": "", "choices": [row["sentence_good"], row["sentence_bad"]], "gold": 0}


def casehold(row: dict) -> dict:
    """LexGLUE's case_hold (context, endings, label), or the authors' CSV (citing_prompt, holding_0 to 4, label)."""
    context = row["context"] if "context" in row else row["citing_prompt"]
    endings = row["endings"] if "endings" in row else [row[f"holding_{index}"] for index in range(5)]
    return {"context": context, "choices": list(endings), "gold": int(row["label"])}


def legalbench(row: dict) -> dict:
    """All fields but the answer, with their names if there are several. The choices are the task's answers."""
    answer = str(row["answer"] if "answer" in row else row["label"]).strip()
    given = {
        key: str(value).strip()
        for key, value in row.items()
        if key not in LEGALBENCH_NOT_ASKED and not key.startswith("choice_") and value is not None
    }
    options = [str(row[key]).strip() for key in sorted(row) if key.startswith("choice_")]
    if list(given) == ["text"]:
        asked = given["text"]
    else:
        asked = "\n".join(f"{key.replace('_', ' ').capitalize()}: {value}" for key, value in given.items())
    if options:  # scalr: the answer is the number of a holding
        return {"context": f"{asked}\nAnswer:", "choices": options, "gold": int(answer)}
    return {"context": f"{asked}\nAnswer:", "label": answer}


# Notes on an item's origin; some reveal the answer.
LEGALBENCH_NOT_ASKED = {
    "index", "answer", "label", "task", "split", "slice", "id", "parties_are_diverse", "aic_is_met",
    "document_name", "doc_id", "file_name", "url", "source",
}  # fmt: skip


def medqa(row: dict) -> dict:
    """The Hub's `-hf` copy (sent1, ending0 to 3, label) or the original (question, options A to D, answer_idx)."""
    if "sent1" in row:
        question, options, gold = row["sent1"], [row[f"ending{index}"] for index in range(4)], int(row["label"])
    else:
        question, options = row["question"], [row["options"][letter] for letter in "ABCD"]
        gold = LETTERS.index(row["answer_idx"])
    return {"context": lettered(f"Question: {question}", options), "choices": list("ABCD"), "gold": gold}


def medmcqa(row: dict) -> dict | None:
    """Return None for the test split, whose answers are withheld (-1)."""
    if int(row["cop"]) < 0:
        return None
    options = [row[key] for key in ("opa", "opb", "opc", "opd")]
    return {
        "context": lettered(f"Question: {row['question']}\nChoices:", options),
        "choices": list("ABCD"),
        "gold": int(row["cop"]),
    }


def pubmedqa(row: dict) -> dict:
    """bigbio's and the authors' form (QUESTION, CONTEXTS), or the Hub's (question, context.contexts)."""
    question = row["QUESTION"] if "QUESTION" in row else row["question"]
    abstract = "\n".join(row["CONTEXTS"] if "CONTEXTS" in row else row["context"]["contexts"])
    choices = ["yes", "no", "maybe"]
    return {
        "context": f"Abstract: {abstract}\nQuestion: {question}\nAnswer:",
        "choices": choices,
        "gold": choices.index(row["final_decision"]),
    }


SENTIMENTS = ["negative", "neutral", "positive"]


def fpb(row: dict) -> dict:
    """The archive's lines, `sentence@label`, or sentence and label (0 negative, 1 neutral, 2 positive)."""
    if "sentence" in row:
        sentence, label = row["sentence"], row["label"]
    else:
        sentence, _, label = row["text"].rpartition("@")
    gold = label if isinstance(label, int) else SENTIMENTS.index(label.strip())
    context = f"{sentence.strip()}\nQuestion: what is the sentiment?\nAnswer:"
    return {"context": context, "choices": SENTIMENTS, "gold": gold}


def fiqa(row: dict) -> dict:
    """Sentiment of -1 to 1 toward a named target, in three classes."""
    score = float(row["score"] if "score" in row else row["sentiment_score"])
    gold = 0 if score < -FIQA_NEUTRAL else 2 if score > FIQA_NEUTRAL else 1
    question = f"Question: what is the sentiment on {row['target']}?"
    return {"context": f"{row['sentence'].strip()}\n{question}\nAnswer:", "choices": SENTIMENTS, "gold": gold}


FIQA_NEUTRAL = 0.1  # BloombergGPT, appendix B, has the same boundaries


def flare_choice(row: dict) -> dict:
    """TheFinAI's flare-* sets with choices; `query` is the whole prompt."""
    return {"context": row["query"].strip(), "choices": list(row["choices"]), "gold": int(row["gold"])} | (
        {"label_type": row["label_type"]} if "label_type" in row else {}
    )


def flare_answer(row: dict) -> dict:
    """TheFinAI's flare-* sets with written answers."""
    return {"context": row["query"].strip(), "answer": str(row["answer"]).strip()}


def finqa(row: dict) -> dict:
    """The authors' JSON: pre_text, table, post_text, qa.question, qa.exe_ans (a number, or yes and no)."""
    asked = row.get("qa", row)
    table = "\n".join(" | ".join(str(cell) for cell in line) for line in row["table"])
    parts = [" ".join(row["pre_text"]), table, " ".join(row["post_text"]), f"Question: {asked['question']}\nAnswer:"]
    answer = asked["exe_ans"] if asked.get("exe_ans") is not None else asked["answer"]
    return {"context": "\n".join(part for part in parts if part), "answer": str(answer)}


def ner(row: dict) -> dict | None:
    """Words with BIO or IO tags; the answer is a list `entity (TYPE), ...`.

    As in BloombergGPT's appendix B, entities of type MISC do not count; a text without others gives None.
    """
    words = row["tokens"] if "tokens" in row else row["text"].split()
    tags = [str(tag) for tag in (row["tags"] if "tags" in row else row["label"])]
    entities: list[list[str]] = []
    kind = None
    for word, tag in zip(words, tags, strict=True):
        mark, _, new = tag.partition("-")
        if mark != "I" or new != kind:
            kind = None if tag == "O" else new
            if kind:
                entities.append([kind])
        if kind:
            entities[-1].append(word)
    answer = ", ".join(f"{' '.join(entity[1:])} ({entity[0]})" for entity in entities if entity[0] != "MISC")
    if not answer:
        return None
    return {"context": f"{' '.join(words)}\nExtract named entities:", "answer": answer}


def items(row: dict) -> dict:
    """Rows that are items already: those of our own suites and of --export_requests."""
    return row


READERS: dict[str, Callable[[dict], dict | None]] = {
    reader.__name__: reader
    for reader in (
        arc, blimp, boolq, casehold, fiqa, finqa, flare_answer, flare_choice, fpb, hellaswag, items, lambada,
        legalbench, medmcqa, medqa, mmlu, ner, openbookqa, piqa, pubmedqa, winogrande,
    )
}  # fmt: skip
# Readers of the sets that llm-foundry has without "Answer:", which its harness adds as a delimiter.
ANSWER_LEFT_OUT = ("arc", "boolq", "mmlu", "piqa")


def as_item(row: dict, reader: str) -> dict | None:
    """Turn a row into an item. Every reader also takes items and llm-foundry's form (query, choices, gold).

    Returns: the item, or None for a row that cannot be scored.
    """
    if "gold" in row and "choices" in row and reader != "flare_choice":
        context = row["context"] if "context" in row else row.get("query", "").rstrip()
        if "context" not in row and reader in ANSWER_LEFT_OUT and not context.endswith("Answer:"):
            context += "\nAnswer:"
        item = {key: value for key, value in row.items() if key != "query"} | {"context": context}
    else:
        item = READERS[reader](row)
    return item
