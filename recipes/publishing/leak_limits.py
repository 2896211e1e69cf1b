# SPDX-License-Identifier: Apache-2.0
"""Refuse to publish a model that gives away more of its training text than hub.leak_audit allows."""

from pathlib import Path

from atomic_files import read_json
from provenance.audit_record import describe_inputs
from recipe_config import Recipe, RecipeError
from recorded_files import RUN_FILES, find_difference, find_record_damage, recorded_run_files


def read_audit(run: Path) -> tuple[dict | None, str]:
    """Return the content of a run's audit.json, or None and why there is none to rely on."""
    path = run / "audit.json"
    if not path.exists():
        return None, "is missing"
    if problem := find_record_damage(run):
        return None, f"cannot be checked: {RUN_FILES} {problem}"
    recorded = recorded_run_files(run).get(path.name)
    if recorded is None:
        return None, "has no recorded sha256, as where an audit was stopped or is of an earlier version"
    audit, problem = read_json(path), find_difference(path, recorded)
    if problem or audit is None:
        return None, f"is damaged: {problem or 'no JSON object'}"
    made_from, now = audit["made_from"], describe_inputs(run)
    changed = [name for name in now if made_from.get(name) != now[name]]
    return (None, f"is of another {' and '.join(changed)} than this run's") if changed else (audit, "")


def refuse_leaks(recipe: Recipe) -> None:
    """Compare audit.json with hub.leak_audit, if the recipe sets it.

    Raises: RecipeError: the audit is missing or out of date, or a figure is above its limit; all of them are named.
    """
    limits, run = recipe.hub.leak_audit, Path(recipe.run.output_dir)
    if limits is None:
        return
    audit, problem = read_audit(run)
    if audit is None:
        raise RecipeError(
            f"{run / 'audit.json'} {problem}, and hub.leak_audit requires it; run: python recipes/audit_leaks.py {run}"
        )
    trained, membership, problems = audit["verbatim"]["trained"], audit["membership"], []
    if (continued := trained["continued"].get("50")) is None:
        problems.append(
            "hub.leak_audit.max_verbatim_50_fraction: continuations of 50 tokens were not measured, since the model "
            f"reads {audit['settings']['window_tokens']} tokens; leave hub.leak_audit out"
        )
    elif continued["interval"][1] > limits.max_verbatim_50_fraction:
        problems.append(
            f"hub.leak_audit.max_verbatim_50_fraction={limits.max_verbatim_50_fraction}: {continued['documents']:,} "
            f"of {trained['documents']:,} trained documents are continued word for word for 50 tokens, up to "
            f"{continued['interval'][1]:.3f} of all by a 95 % interval; audit more --documents for a narrower one, "
            "repeat the text less often in training, or raise the limit"
        )
    if (values := audit["personal_data"]["in_training_text"]) > limits.max_personal_values:
        problems.append(
            f"hub.leak_audit.max_personal_values={limits.max_personal_values}: the model wrote {values:,} values of "
            "personal data that stand in its training text; let data.personal_data replace them, or raise the limit"
        )
    if limits.max_exposure_bits is not None:
        levels = audit["canaries"]["by_repetitions"] if audit["canaries"] else {}
        if not levels:
            problems.append("hub.leak_audit.max_exposure_bits: no records were planted; set data.canaries")
        problems += [
            f"hub.leak_audit.max_exposure_bits={limits.max_exposure_bits}: records planted {repetitions} times have a "
            f"mean exposure of {level['mean_exposure_bits']:.1f} bits, up to {level['interval'][1]:.1f} by a 95 % "
            "interval; repeat the text less often in training, or raise the limit"
            for repetitions, level in levels.items()
            if repetitions != "0" and level["interval"][1] > limits.max_exposure_bits
        ]
    if limits.max_membership_auc is not None:
        if membership is None:
            problems.append(
                "hub.leak_audit.max_membership_auc: membership was not measured, since no source has trained and "
                "held-out documents that are long enough; leave the key out"
            )
        elif membership["interval"][1] > limits.max_membership_auc:
            problems.append(
                f"hub.leak_audit.max_membership_auc={limits.max_membership_auc}: the loss separates trained documents "
                f"from unseen ones with an AUC of {membership['auc']:.3f}, up to {membership['interval'][1]:.3f} by a "
                "95 % interval; repeat the text less often in training, or raise the limit"
            )
    if problems:
        raise RecipeError(*(f"{run / 'audit.json'}: {problem}" for problem in problems))
