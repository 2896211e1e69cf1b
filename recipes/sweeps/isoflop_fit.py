# SPDX-License-Identifier: Apache-2.0
"""From the rows of an IsoFLOP sweep to fit.json: the three fits, their intervals, and the held-out runs."""

import math
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from planning.law_fits import (
    Parabola,
    Runs,
    fit_envelope,
    fit_loss,
    fit_minima,
    fit_parabolas,
    interval,
    resample,
    size_exponent,
)
from planning.scaling_laws import LossLaw


PARAMETER_COUNTS = ("multiplying", "total", "non_vocabulary")


def collect(rows: list[dict], counts: str, held_out: bool) -> Runs:
    """Return the arrays of the rows that are, or are not, held out; `counts`: convention of N in PARAMETER_COUNTS."""
    chosen = [row for row in rows if bool(int(row["held_out"])) == held_out]
    columns = ("budget_flops", f"{counts}_parameters", "tokens", "bits_per_byte")
    return Runs(*(np.array([float(row[name]) for row in chosen]) for name in columns))


def predict(law: LossLaw, runs: Runs) -> list[float]:
    """Return the law's loss of each run."""
    return [law.loss(n, d) for n, d in zip(runs.parameters, runs.tokens, strict=True)]


def fit(rows: list[dict], resamples: int, seed: int = 0) -> dict:
    """Fit the rows in all three ways, predict the held-out runs, and return fit.json's content.

    Keys: exponents (a of N_opt ~ C^a by approach, with its interval; without approach 2 where fewer than two budgets
    have a minimum between their sizes), law (approach 3) with intervals, parabolas, other_counts (a by approach 3, N
    counted in other ways), held_out (`foretold` is the predicted loss).
    """
    runs, held_out = (collect(rows, "multiplying", held_out=part) for part in (False, True))
    parabolas, law = fit_parabolas(runs), fit_loss(runs, "multiplying")
    power_laws = {"approach_1": fit_envelope(runs)}
    if sum(parabola.inside for parabola in parabolas) >= 2:
        power_laws["approach_2"] = fit_minima(parabolas)
    resampled = refit(runs, held_out, parabolas, law, resamples, seed)
    exponents = {
        name: {"a": power_law.exponent, "coefficient": power_law.coefficient, "interval": interval(resampled[name])}
        for name, power_law in power_laws.items()
    }
    exponents["approach_3"] = {"a": size_exponent(law), "interval": interval(resampled["approach_3"])}
    intervals = {key: interval([one[key] for one in resampled["laws"]]) for key in ("E", "alpha", "beta")}
    errors = np.log(predict(law, runs)) - np.log(runs.loss)
    return {
        "unit": "bits per byte of held-out text",
        "counts": "multiplying",
        "runs": len(runs.loss),
        "intervals": "10th to 90th percentile of fits to the runs with their noise resampled",
        "resamples": resamples,
        "resamples_without_minima": int(np.isnan(resampled["approach_2"]).sum()),
        "exponents": exponents,
        "law": asdict(law) | {"intervals": intervals},
        "root_mean_square_error": float(np.sqrt(np.mean(errors**2))),
        "parabolas": [
            asdict(p) | {"coefficients": list(p.coefficients), "parameters": p.parameters} for p in parabolas
        ],
        "other_counts": {
            counts: size_exponent(fit_loss(collect(rows, counts, held_out=False), counts))
            for counts in PARAMETER_COUNTS[1:]
        },
        "held_out": compare_held_out(held_out, law, resampled["predicted"]),
    }


def refit(
    runs: Runs, held_out: Runs, parabolas: list[Parabola], law: LossLaw, resamples: int, seed: int
) -> dict[str, list]:
    """Fit resampled runs in all three ways.

    Returns: the exponents of approach_1, approach_2 (NaN where the noise leaves too few minima) and approach_3; laws,
        the constants of approach 3; and predicted, its losses of the held-out runs. One entry of each a resample.
    """
    found: dict[str, list] = {name: [] for name in ("approach_1", "approach_2", "approach_3", "laws", "predicted")}
    progress = tqdm(resample(runs, parabolas, resamples, seed), "fit_scaling_law: resampling", resamples, leave=False)
    for again in progress:
        again_law = fit_loss(again, "multiplying", start=law)
        found["laws"].append(asdict(again_law))
        found["approach_1"].append(fit_envelope(again).exponent)
        try:
            found["approach_2"].append(fit_minima(fit_parabolas(again)).exponent)
        except ValueError:  # left out of the interval, and counted in resamples_without_minima
            found["approach_2"].append(math.nan)
        found["approach_3"].append(size_exponent(again_law))
        found["predicted"].append(predict(again_law, held_out))
    return found


def compare_held_out(runs: Runs, law: LossLaw, resampled: list[list[float]]) -> list[dict]:
    """Return each held-out run with its predicted loss, the interval of the resampled ones, and its measured loss."""
    return [
        {
            "flops": float(runs.flops[index]),
            "parameters": int(runs.parameters[index]),
            "tokens": int(runs.tokens[index]),
            "foretold": predicted,
            "interval": interval([one[index] for one in resampled]),
            "measured": float(runs.loss[index]),
            "error_fraction": predicted / float(runs.loss[index]) - 1,
        }
        for index, predicted in enumerate(predict(law, runs))
    ]


def describe_fit(found: dict) -> list[str]:
    """Return fit.json's content as lines for the terminal."""
    lines = [
        f"{name.replace('_', ' ')}: N ~ C^{one['a']:.3f} ({one['interval'][0]:.3f} to {one['interval'][1]:.3f})"
        for name, one in found["exponents"].items()
    ]
    law = found["law"]
    lines.append(
        f"L = {law['E']:.3f} + {law['A']:.3g} / N^{law['alpha']:.3f} + {law['B']:.3g} / D^{law['beta']:.3f} "
        "bits per byte"
    )
    for one in found["held_out"]:
        low, high = one["interval"]
        lines.append(
            f"held out, {one['parameters']:,} parameters, {one['tokens']:,} tokens: predicted {one['foretold']:.4f} "
            f"({low:.4f} to {high:.4f}), measured {one['measured']:.4f}, {one['error_fraction']:+.2%}"
        )
    return lines
