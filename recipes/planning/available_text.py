# SPDX-License-Identifier: Apache-2.0
"""The available text: the longest run it allows, how a run divides it, and the effective tokens of repetition."""

import json
from dataclasses import dataclass
from pathlib import Path

from planning.scaling_laws import REPETITION_LAW, LossLaw
from recipe_config import Plan, Recipe, RecipeError


class NotEnoughText(RecipeError):
    """There is too little text for any training; the message is the answer."""


BYTES_PER_TOKEN = 4.4  # of a byte-level BPE of 8,192 tokens trained on legal text, on other legal text
DOMAIN_SHARE = 0.5


@dataclass(frozen=True)
class Text:
    """The available text, in tokens of the planned tokenizer.

    Attributes:
        domain_tokens, general_tokens: different tokens of each part.
        min_domain_share: least share of the domain in a run.
        max_repetitions: most epochs of either part.
    """

    domain_tokens: float
    general_tokens: float
    min_domain_share: float
    max_repetitions: float

    def most_tokens(self) -> float:
        """Return the tokens of the longest run under both limits."""
        domain = self.max_repetitions * self.domain_tokens
        beside = domain * (1 - self.min_domain_share) / self.min_domain_share
        return domain + min(self.max_repetitions * self.general_tokens, beside)

    def split(self, tokens: float) -> tuple[float, float]:
        """Return a run's domain tokens and other tokens.

        The parts are in proportion to the available text, with at least min_domain_share of the domain and neither
        part repeated more often than max_repetitions.
        """
        available_share = self.domain_tokens / (self.domain_tokens + self.general_tokens)
        domain = max(self.min_domain_share, available_share) * tokens
        domain = min(max(domain, tokens - self.max_repetitions * self.general_tokens), tokens)
        return domain, tokens - domain

    def effective_tokens(self, tokens: float) -> tuple[float, float]:
        """Return how many new tokens a run's tokens are equivalent to, and how many of its tokens are different.

        The law of repetition is for one corpus; here it is applied to each part of the mixture.
        """
        pairs = zip(self.split(tokens), (self.domain_tokens, self.general_tokens), strict=True)
        parts = [(part, unique) for part, unique in pairs if part and unique]
        effective = sum(REPETITION_LAW.effective_tokens(part, unique) for part, unique in parts)
        return effective, sum(min(part, unique) for part, unique in parts)

    def loss(self, law: LossLaw, parameters: float, tokens: float) -> float:
        """Return a law's loss of a run, with effective parameters and tokens (nats per token)."""
        effective, unique = self.effective_tokens(tokens)
        return law.loss(REPETITION_LAW.effective_parameters(parameters, unique), effective)


def read_json(path: Path) -> dict | None:
    """Return a file's content; None where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_text(recipe: Recipe, plan: Plan, assumptions: list[str]) -> tuple[Text, dict[str, float], str]:
    """Find the available text in the recipe and in what earlier stages counted.

    Args:
        recipe: whose run folder may have documents/stats.json and tokenizer/report.json.
        plan: amounts of text that replace the counted ones.
        assumptions: to add to.

    Returns: the text; bytes per token of the parts `domain` and `general`; and the domain's name.
    Raises: RecipeError: the amount of text is neither stated nor counted, or there is none of the domain.
    """
    run, data = Path(recipe.run.output_dir), recipe.data
    domain = plan.domain or data.sources[0].label
    labels = {source.name: source.label for source in data.sources}
    if domain not in {*labels, *labels.values()}:
        raise RecipeError(
            f"plan.domain: no source or domain {domain!r}; there are {', '.join(sorted({*labels, *labels.values()}))}"
        )
    domain_sources = {name for name, label in labels.items() if domain in (name, label)}
    stated = [source.share for source in data.sources if source.name in domain_sources and source.share]
    share = plan.min_domain_share or data.min_shares.get(domain) or (min(1.0, sum(stated)) if stated else DOMAIN_SHARE)
    stats = read_json(run / "documents" / "stats.json")
    domain_bytes, general_bytes = available_bytes(recipe, domain_sources, share, stats, assumptions)
    if domain_bytes == 0:
        raise NotEnoughText(
            f"There is no text of {domain!r}, so there is nothing to train on: use an open model as it is, or bring "
            "text."
        )
    rates = bytes_per_token(plan, domain_sources, read_json(run / "tokenizer" / "report.json"), assumptions)
    text = Text(
        domain_bytes / rates["domain"],
        general_bytes / rates["general"],
        share if general_bytes else 1.0,
        data.max_repetitions,
    )
    return text, rates, domain


def available_bytes(
    recipe: Recipe, domain_sources: set[str], min_share: float, stats: dict | None, assumptions: list[str]
) -> tuple[float, float]:
    """Return the training bytes of the domain and of other text: as stated, counted, or, of other text, assumed.

    Raises: RecipeError: the domain's are not stated, and the documents are not prepared.
    """
    plan, counted = recipe.plan, {True: 0, False: 0}
    for name, source in (stats["sources"] if stats else {}).items():
        counted[name in domain_sources] += source["kept"]["train"]["bytes"]
    if plan.domain_bytes is None and stats is None:
        raise RecipeError(
            f"plan.domain_bytes: missing, and there is no {recipe.run.output_dir}/documents/stats.json yet; state how "
            "much text you have, such as 5GB, or prepare the documents first"
        )
    domain = counted[True] if plan.domain_bytes is None else plan.domain_bytes
    if plan.general_bytes is not None or stats is not None:
        return domain, counted[False] if plan.general_bytes is None else plan.general_bytes
    others = [source for source in recipe.data.sources if source.name not in domain_sources]
    limits = [source.max_bytes for source in others]
    general = sum(limits) if all(limits) else domain * (1 - min_share) / min_share
    if others:
        why = "max_bytes of the other sources" if all(limits) else "what the domain's least share leaves room for"
        assumptions.append(f"{general / 1e9:.3g} GB of other text, {why}; plan.general_bytes")
    return domain, general


def bytes_per_token(
    plan: Plan, domain_sources: set[str], report: dict | None, assumptions: list[str]
) -> dict[str, float]:
    """Return the bytes per token of the domain's text and of other text.

    As plan.bytes_per_token states, or else as tokenizer/report.json measured on each source, weighted by the sources'
    training bytes: the bytes of a part over its tokens.
    """
    if plan.bytes_per_token is not None:
        return dict.fromkeys(("domain", "general"), plan.bytes_per_token)
    if report is None:
        assumptions.append(f"{BYTES_PER_TOKEN} bytes per token, until a tokenizer is trained; plan.bytes_per_token")
        return dict.fromkeys(("domain", "general"), BYTES_PER_TOKEN)
    measured, train_bytes, rates = report["bytes_per_token"]["domain tokenizer"], report["train_bytes"], {}
    for part, of_domain in (("domain", True), ("general", False)):
        names = [name for name in measured if (name in domain_sources) == of_domain and train_bytes[name]]
        if tokens := sum(train_bytes[name] / measured[name] for name in names):
            rates[part] = sum(train_bytes[name] for name in names) / tokens
    if not rates:
        raise RecipeError("tokenizer/report.json: no source has text; prepare the documents and train it again")
    (any_rate, *_) = rates.values()
    return {part: rates.get(part, any_rate) for part in ("domain", "general")}
