# SPDX-License-Identifier: Apache-2.0
"""The findings of a leak audit in plain sentences, and what they do not show."""

LEVEL = 0.05  # of a test: a verdict is wrong this often where nothing leaks
FEW_DOCUMENTS = 30  # with none of 30 continued, 1 in 9 may be


def percent(bounds: list[float]) -> str:
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def counted(entry: dict) -> str:
    return f"{entry['documents']:,}" if entry["documents"] else "none"


def is_or_are(entry: dict) -> str:
    return "is" if entry["documents"] < 2 else "are"


def describe_findings(audit: dict) -> list[str]:
    """Return what an audit.json says, a sentence or two for each measure."""
    verbatim, found = audit["verbatim"], []
    trained, held_out = verbatim["trained"], verbatim["held_out"]
    for length, own in trained["continued"].items():
        line = (
            f"Of {trained['documents']:,} documents that were trained on, {counted(own)} {is_or_are(own)} continued "
            f"word for word for {length} tokens ({percent(own['interval'])} by a 95 % interval)"
        )
        if held_out["documents"]:
            other = held_out["continued"][length]
            line += f"; of {held_out['documents']:,} never trained on, {counted(other)} ({percent(other['interval'])})"
        if length in verbatim["more_often"]:
            line += ". That is more often than chance explains"
        elif own["documents"]:
            line += ". Chance may explain the difference"
        found.append(line + ".")
    by_chance = verbatim["sampled"]
    for length, own in by_chance["trained"]["continued"].items():
        if length == list(by_chance["trained"]["continued"])[:2][-1]:  # 50, where the model reads as many
            other = by_chance["held_out"]["continued"][length]
            found.append(
                f"Of {by_chance['samples']} continuations drawn at random, one is more likely than not that of "
                f"the document for {length} tokens: for {counted(own)} of {trained['documents']:,} that were trained "
                f"on, for {counted(other)} of {held_out['documents']:,} others."
            )
    groups = verbatim["by_times_trained"]
    if any(entry["documents"] for entry in trained["continued"].values()):
        for times, group in groups.items():
            length = list(group["continued"])[:2][-1]  # 50, where the model reads as many
            entry, often = group["continued"][length], "once" if times == "1" else f"{times} times"
            found.append(
                f"Of {group['documents']:,} documents that were trained on {often}, {counted(entry)} "
                f"{is_or_are(entry)} continued for {length} tokens ({percent(entry['interval'])})."
            )
    if common := verbatim["held_out_in_training_text"]:
        found.append(
            f"Of the continuations of documents that were never trained on, {common:,} stand word for word in "
            "training documents: the wording is common there."
        )
    personal = audit["personal_data"]
    number, samples = len(personal["values"]), "sample" if personal["samples"] == 1 else "samples"
    found.append(
        f"Patterns find {number or 'no'} {'value' if number == 1 else 'values'} of personal data in "
        f"{personal['samples']:,} {samples} and in what was continued word for word"
        + (f"; {personal['in_training_text']:,} of them stand in the training text." if number else ".")
    )
    for times, level in audit["canaries"]["by_repetitions"].items() if audit["canaries"] else ():
        how = "never planted" if times == "0" else "planted once" if times == "1" else f"planted {times} times"
        verdict = "" if times == "0" else "; the model knows them" if level["exposed"] else "; not shown to be known"
        low, high = level["interval"]
        found.append(
            f"{level['records']:,} made-up records {how} have a mean exposure of {level['mean_exposure_bits']:.1f} "
            f"bits ({low:.1f} to {high:.1f}; 1.4 is chance, 8 the most){verdict}."
        )
    membership = audit["membership"]
    if membership is not None:
        line = (
            "Of a document that was trained on and one of its source that was not, the first has the lower loss a "
            f"token in {100 * membership['auc']:.0f} % of pairs ({percent(membership['interval'])} by a 95 % "
            "interval; 50 % is chance)"
        )
        line += ": the loss shows which documents were trained on" if audit["flags"]["membership"] else ""
        found.append(line + ".")
        by_tokens = membership["tokenizer"]
        if by_tokens["p_value"] < LEVEL:
            found.append(
                f"In {100 * by_tokens['auc']:.0f} % of such pairs the first has fewer tokens a byte: the tokenizer "
                "alone shows something about what it was trained on."
            )
    return found


def describe_limits(audit: dict) -> list[str]:
    """Return what cannot be concluded from an audit.json."""
    settings, verbatim = audit["settings"], audit["verbatim"]
    limits = [
        f"Greedy decoding and sampling from the first {settings['prompt_tokens']} tokens are two attacks. Other "
        "prompts, other sampling or fine-tuning may extract more.",
        f"Documents of fewer than {settings['least_tokens']:,} tokens, and the later parts of longer ones, were not "
        "audited.",
        "Patterns find no names, street addresses or statements about persons.",
        "A test of membership by the loss is weak: where it finds nothing, a stronger one may.",
    ]
    if left := settings["lengths_left_out"]:
        limits.append(
            f"Continuations of {' and '.join(map(str, left))} tokens were not measured: the model reads "
            f"{settings['window_tokens']:,} tokens."
        )
    for kind, side in (("trained", "trained"), ("held-out", "held_out")):
        if verbatim[side]["documents"] < FEW_DOCUMENTS:
            limits.append(
                f"Only {verbatim[side]['documents']} {kind} documents were long enough: what they show is rough."
            )
    if audit["canaries"] is None:
        limits.append("How often a text must be repeated to be known was not measured: data.canaries was not set.")
    if audit["membership"] is None:
        limits.append("Membership was not measured: no source has both trained and held-out documents.")
    return limits
