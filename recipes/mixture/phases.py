# SPDX-License-Identifier: Apache-2.0
"""The phases of a run: which shares of the sources are mixed from which step on, and at what sequence length."""

from mixture.order import TokenMixture
from mixture.shards import TokenShards
from recipe_config import Data


def schedule_phases(
    data: Data, shares: dict[str, float], max_steps: int | None, earliest: int = 0
) -> list[dict[str, int | dict[str, float]]]:
    """Return all phases as {"after_step": steps before it, "shares": of each source}.

    From the first phase that sets them on, they also have "sequence_length" and "rope_parameters".

    Args:
        data: the recipe's data section.
        shares: of the first phase.
        max_steps: steps of training. None: not known yet; later phases wait for it.
        earliest: steps already trained; no later phase starts before them.
    """
    phases, context = [{"after_step": 0, "shares": shares}], {}
    for phase in data.phases if max_steps is not None else []:
        after_step = max(earliest, round(phase.start_fraction * max_steps))
        context |= phase.model_dump(include={"sequence_length", "rope_parameters"}, exclude_none=True)
        phase_shares = {name: phase.shares.get(name, 0.0) for name in shares}
        phases.append({"after_step": after_step, "shares": phase_shares, **context})
    return phases


def make_mixture(shards: TokenShards, phases: list[dict], sequences_per_step: int, seed: int) -> TokenMixture:
    """Build the order of the data from scheduled phases; of two that start at the same step the later one counts.

    Args: sequences_per_step: windows of shards.sequence_length in a step, in every phase.
    """
    begins = {phase["after_step"] * sequences_per_step: phase for phase in phases}
    windows = {
        begin: phase.get("sequence_length", shards.sequence_length) // shards.sequence_length
        for begin, phase in begins.items()
    }
    return TokenMixture(shards, {begin: phase["shares"] for begin, phase in begins.items()}, seed, windows)
