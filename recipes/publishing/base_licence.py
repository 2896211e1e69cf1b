# SPDX-License-Identifier: Apache-2.0
"""What the licence of a model asks of one that was continued from it or learned from it, and the refusal of what
contradicts it.

It names the usual terms and is no legal advice: the licence's own text decides.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from corpus.data_card import licence_kind
from publishing.base_model import Base, find_base, find_licensors, find_teachers
from recipe_config import Recipe, RecipeError


@dataclass(frozen=True)
class Terms:
    """What a licence asks of whoever passes the model on.

    Attributes:
        asks: sentences.
        notice: the line that a notice file must hold; None: none is prescribed.
        name: what the model's name must begin with; None: anything.
    """

    asks: tuple[str, ...]
    notice: str | None = None
    name: str | None = None


COPY = "Pass a copy of the licence on."
USE_POLICY = "Its acceptable use policy binds every user."
META = "Copyright (c) Meta Platforms, Inc. All Rights Reserved."


def terms_of(licence: str | None) -> Terms | None:
    """Return the known terms of a licence, as the Hub spells it; None: nothing is known here."""
    name = plain(licence or "")
    if name.startswith("gemma"):
        return Terms(
            (
                COPY,
                "Say which files were modified.",
                "Bind every user to its prohibited use policy, in the terms of your own release too.",
            ),
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        )
    if found := re.match(r"(?:meta)?llama(\d)(\.\d)?", name):
        major, version = found[1], found[1] + (found[2] or "")
        called = "Meta Llama 3" if version == "3" else f"Llama {version}"
        asks = [COPY, USE_POLICY]
        if major == "2":
            asks.append("It may not be used to improve models of other families.")
            return Terms(tuple(asks), f"Llama 2 is licensed under the LLAMA 2 Community License, {META}")
        begin = "Llama 3" if version == "3" else "Llama"
        asks.append(f'Show "Built with {"Meta Llama 3" if version == "3" else "Llama"}" prominently.')
        asks.append(f'Let the model\'s name begin with "{begin}".')
        return Terms(tuple(asks), f"{called} is licensed under the {called} Community License, {META}", begin)
    kind = licence_kind(licence)
    if kind == "attribution":
        return Terms(("Keep its copyright and licence notices.",))
    return {
        "public domain": Terms(()),
        "share-alike": Terms(("A model made from it may have to be passed on under the same licence.",)),
        "non-commercial": Terms(("Use it, and what is made from it, for non-commercial purposes only.",)),
        "no derivatives": Terms(("It forbids to pass changed versions on.",)),
    }.get(kind)


def plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def refuse_licence(recipe: Recipe, base: Base | None, teachers: Sequence[Base] = ()) -> None:
    """Refuse a licence or a name of the release that contradicts the licence of its base or of a teacher.

    hub.license `other`, where the user wrote it, names no terms: it contradicts none but a licence that forbids to
    pass changed versions on.

    Args: teachers: of find_teachers.

    Raises: RecipeError: it says what would be compatible, and how to say that it is all the same.
    """
    stated, continued = recipe.hub.base_license, base.chain() if base else []
    links = find_licensors(base, teachers)
    if stated is not None and all(link.licence not in (None, stated) for link in links) and links:
        raise RecipeError(
            *(
                f"hub.base_license={stated}: the card of {link.name} states {link.licence}; read that licence"
                for link in links
            )
        )
    problems = [
        problem
        for link in links
        if stated is None or link.licence not in (None, stated)
        for problem in contradictions(recipe, link, "was continued" if link in continued else "learned")
    ]
    if problems:
        raise RecipeError(*problems)


def check_licence(recipe: Recipe) -> str | None:
    """Refuse, before work starts, what refuse_licence would refuse of the release.

    Returns: a note on licences that were not found: training needs no Hub, which may not be reached.

    Raises: RecipeError
    """
    base, teachers = find_base(recipe), find_teachers(recipe)
    unread = [link.name for link in find_licensors(base, teachers) if link.is_on_hub and link.licence is None]
    if unread and recipe.hub.license != "other" and recipe.hub.base_license is None:
        return (
            f"note: the licence of {', '.join(unread)} was not found: the Hub was not reached, or the card states "
            "none; where it is not found later either, the release needs hub.base_license or hub.license: other"
        )
    return refuse_licence(recipe, base, teachers)


def contradictions(recipe: Recipe, base: Base, verb: str) -> list[str]:
    """Return how the licence and the name of the release contradict the licence of one model.

    Args: verb: what the release was or did from it.
    """
    given, name = recipe.hub.license, (recipe.hub.repo_id or "").rpartition("/")[2]
    found = f"hub.license={given}" if given else "hub.license is not set"
    licence = base.licence or "the name of its licence"
    accept = f"or, once you know that its terms allow it, hub.base_license: {licence}"
    problems, terms = [], terms_of(base.licence)
    if base.licence is None:
        if given != "other":
            problems.append(
                f"{found}: the card of {base.name} states no licence, or could not be read; set "
                f"hub.license: other {accept}"
            )
    elif licence_kind(base.licence) == "no derivatives":
        problems.append(
            f"{found}: the model {verb} from {base.name}, whose licence {base.licence} forbids to "
            "pass changed versions on; choose another or, with its owner's permission, set "
            f"hub.base_license: {base.licence}"
        )
    elif not compatible(given, base.licence):
        problems.append(
            f"{found}: the model {verb} from {base.name}, whose licence is {base.licence}; set "
            f"hub.license: {base.licence} {accept}"
        )
    if terms and terms.name and name and not plain(name).startswith(plain(terms.name)):
        problems.append(
            f"hub.repo_id={recipe.hub.repo_id}: the licence {base.licence} of {base.name} asks that the name begins "
            f'with "{terms.name}"; rename it {accept}'
        )
    return problems


def terms_along(base: Base | None, teachers: Sequence[Base] = ()) -> list[tuple[Base, Terms]]:
    """Return the models of find_licensors whose licences have terms that are known here, and these terms."""
    pairs = [(link, terms_of(link.licence)) for link in find_licensors(base, teachers)]
    return [(link, terms) for link, terms in pairs if terms]


def compatible(given: str | None, licence: str) -> bool:
    """Return whether a release under a licence, as the Hub spells it, may be made from a base under another."""
    return given in (licence, "other") or licence_kind(licence) in ("attribution", "public domain")
