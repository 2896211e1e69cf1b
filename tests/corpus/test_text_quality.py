# SPDX-License-Identifier: Apache-2.0
"""Cleaning of single documents: what normalisation leaves, which language a text is in, what is hardly text at all."""

import json
import pickle
import random
import re
import signal
import string
import unicodedata
from base64 import b64encode

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import WordTokenizer

from corpus.language import LONGEST_FEATURE, LanguageFilter, load_arrays, load_model, rate_languages
from corpus.text_normalisation import normalise
from corpus.text_quality import RULES, SENTENCE_END, QualityFilter
from corpus.words import WORD, words_apart
from recipe_config import Languages, Quality, RecipeError


RANDOM = random.Random(3)
PROSE = (
    "The court has considered the motion and the papers that were filed with it. The parties agree that the lease "
    "ended in May, and that the deposit was never returned. What they dispute is who had to repair the roof. Under "
    "the statute, that duty lies with the owner unless the lease says otherwise. It does not, and so the motion of "
    "the tenant is granted, with costs to be taxed by the clerk."
)

JUNK = {
    "cookie wall": "We use cookies and similar tools to give you the best experience on this site. By clicking Accept "
    "all you agree to our use of cookies. Read our cookie policy and our privacy policy to learn how our partners use "
    "cookies, or open the settings to choose which of them you allow. See also our terms of use.",
    "keyword spam": "cheap car insurance quotes online cheap auto insurance lawyer near me best injury lawyer free "
    "quote car accident attorney no fee lawyer truck accident attorney cheap lawyer online free consultation best "
    "mesothelioma attorney settlement calculator cheap loans bad credit payday loans online approval same day cash",
    "menu": "Home\nAbout Us\nPractice Areas\nAttorneys\nTestimonials\nBlog\nCareers\nContact Us\nFamily Law\nEstate "
    "Planning\nPersonal Injury\nCriminal Defense\nImmigration\nBankruptcy\nLocations\nDirections\nSearch\nLog "
    "In\nSign "
    "Up\nFollow Us\nFacebook\nTwitter\nLinkedIn\nYouTube",
    "base64": "\n".join(b64encode(RANDOM.randbytes(57)).decode() for _ in range(30)),
    "letters spaced by a scanner": " ".join(PROSE.replace(" ", "")),
    "OCR noise": " ".join(
        "".join(RANDOM.choices("lI1|!;:.,'~_-ritnmcoe", k=RANDOM.randrange(1, 7))) for _ in range(150)
    ),
    "one line again and again": "This page was intentionally left blank by the issuer of the notes.\n" * 30,
    "one paragraph again and again": "\n\n".join([PROSE] * 4),
    "numbers": "\n".join(" ".join(str(RANDOM.randrange(10**6)) for _ in range(8)) for _ in range(40)),
    "hex dump": "\n".join(RANDOM.randbytes(32).hex() for _ in range(30)),
    "JSON": json.dumps([{"id": i, "type": "node", "style": {"w": i}, "to": {"x": 1}} for i in range(30)]),
    "style sheet": "\n".join(f".box{i} {{ margin: 0 auto; padding: {i}px; float: left }}" for i in range(30)),
    "lorem ipsum": "Lorem ipsum dolor sit amet, consectetur adipiscing elit. "
    "Praesent commodo, lorem ipsum in varius, augue nisl. Lorem ipsum dolor sit amet, the end of the sample. " * 2,
    "tag cloud": " ".join(f"#{word}" for word in re.findall("[a-z]{5,}", PROSE) * 2),
    "teasers": "\n".join(
        f"{title} of the week and what it means to you and yours..."
        for title in ("Ruling", "Deal", "Trade", "Virus", "Drug", "Fund", "Bank", "Judge", "Merger", "Tax")
    ),
    "links": "\n".join(f"http://www.{name}.com/index.html" for name in re.findall("[a-z]{4,}", PROSE)[:40]),
    "keys struck at random": " ".join(
        "".join(RANDOM.choices(string.ascii_lowercase, k=RANDOM.randrange(3, 10))) for _ in range(120)
    ),
    "calendar": "Mo Tu We Th Fr Sa Su\n" + "\n".join(" ".join(str(d) for d in range(w, w + 7)) for w in range(1, 60)),
    "mark-up": '<div class="row"><span class="label">Name</span><input type="text" name="name"></div>\n'
    '<div class="col"><a href="/x" class="btn">Send</a><img src="/a.png" alt="Logo"></div>\n'
    '<table class="grid"><tr><td>Fund</td><td>Share</td></tr></table>\n<ul class="nav"><li>Home</li></ul>\n'
    '<script src="app.js"></script><link rel="stylesheet" href="main.css"><meta name="viewport">\n',
    "leaders": "\n".join("." * 70 for _ in range(30)),
    "genome": "\n".join("".join(RANDOM.choices("ACGT", k=60)) for _ in range(25)),
    "products": "Add to cart\nQuick view\nCompare\nAdd to wish list\n" * 20,
    "nothing": "",
    "a few words": "Page not found. Please go back to the home page.",
}

GOOD = {
    "statute": "§ 1401. Definitions\nIn this chapter—\n(1) the term “agency” means—\n(A) an Executive department;\n"
    "(B) a military department; or\n(C) an independent establishment;\n(2) the term “claim” means a demand—\n"
    "(A) for money; or\n(B) for property,\nthat is presented to an officer,\nemployee,\nor agent of the United States;"
    " and\n(3) the term “State” includes—\n(A) the District of Columbia;\n(B) Puerto Rico; and\n(C) Guam",
    "schedule of fees": "SCHEDULE OF FEES\nFiling a civil action\t$350.00\nFiling a notice of appeal\t$505.00\nCopy, "
    "each "
    "page\t$0.50\nCertified copy\t$11.00\nExemplified copy\t$22.00\nSearch of records, each name\t$31.00\nReturned "
    "check\t$53.00\nAudio recording\t$31.00\nAdmission of attorney\t$181.00\nDuplicate certificate\t$20.00\nMicrofiche"
    "\t$6.00\nRecord retrieval, first box\t$64.00\nRecord retrieval, each further box\t$39.00",
    "signature page": "IN WITNESS WHEREOF, the parties have executed this Agreement as of the date first above "
    "written."
    "\n\nBORROWER:\n\nACME HOLDINGS, INC.\n\nBy: ____________________\nName: Jane Q. Roe\nTitle: Chief Financial "
    "Officer"
    "\n\nLENDER:\n\nFIRST BANK, N.A.\n\nBy: ____________________\nName: John Doe\nTitle: Vice President\n\n"
    "GUARANTOR:\n\nACME SUB, LLC\n\nBy: ____________________\nName: Jane Q. Roe\nTitle: Manager",
    "medication list": "Lisinopril 10 mg PO daily\nMetformin 500 mg PO BID\nAtorvastatin 40 mg PO qHS\nAspirin 81 mg "
    "PO "
    "daily\nMetoprolol succinate 50 mg PO daily\nGabapentin 300 mg PO TID\nOmeprazole 20 mg PO daily\nAlbuterol 90 "
    "mcg "
    "2 puffs q4h PRN\nInsulin glargine 20 units SC qHS\nSertraline 50 mg PO daily\nFurosemide 40 mg PO BID",
    "table of a filing": "(In millions, except per share amounts)\n\t2023\t2022\t2021\nNet sales\t$ 48,310\t$ "
    "45,120\t$ "
    "42,008\nCost of sales\t(21,400)\t(20,118)\t(19,002)\nGross profit\t26,910\t25,002\t23,006\nResearch and "
    "development\t"
    "(4,100)\t(3,850)\t(3,512)\nSelling, general and administrative\t(8,300)\t(8,053)\t(7,708)\nOperating "
    "income\t14,510\t"
    "13,099\t11,786\nNet income per share:\nBasic\t$ 4.21\t$ 3.77\t$ 3.31\nDiluted\t$ 4.18\t$ 3.74\t$ 3.29",
    "short order": "ORDER\nThe petition for rehearing en banc is DENIED. No judge in regular active service "
    "requested a "
    "vote on it. See Fed. R. App. P. 35. The mandate shall issue forthwith.",
    "policy statement": "The Federal Open Market Committee decided today to keep its target for the federal funds "
    "rate "
    "at 5-1/4 percent.\n\nThe Committee believes that the risks to its goals of price stability and sustainable "
    "growth "
    "are balanced. It will watch the data and stands ready to act.\n\nVoting for the action were: Alan Greenspan, "
    "Chairman; William J. McDonough, Vice Chairman; Edward G. Boehne; Robert D. McTeer, Jr.; and Gary H. Stern.",
    "table of contents": "TABLE OF CONTENTS\n"
    + "\n".join(
        f"Section {i}.{j} {title} {'.' * 30} {3 * i + j}"
        for i, titles in enumerate((("Defined Terms", "Accounting"), ("The Loans", "Fees"), ("Covenants", "Liens")), 1)
        for j, title in enumerate(titles, 1)
    ),
    "laboratory results": "Sodium 138 mmol/L (135-145)\nPotassium 4.1 mmol/L (3.5-5.1)\nChloride 102 mmol/L (98-107)\n"
    "Creatinine 1.4 mg/dL (0.7-1.3) H\nGlucose 212 mg/dL (70-99) H\nHemoglobin 11.2 g/dL (13.5-17.5) L\nWBC 9.8 K/uL "
    "(4.5-11.0)\nPlatelets 240 K/uL (150-400)\nHbA1c 8.4 % (<5.7) H\nTSH 2.1 mIU/L (0.4-4.0)",
    "shorthand note": "64 y/o M w/ HTN, DM2, CAD s/p CABG x3, c/o SOB x 2 d. BP 128/82 HR 76 RR 18 SpO2 97% RA. JVP "
    "10 "
    "cm, bibasilar crackles, 2+ edema. BNP 1240, trop neg x2. A/P: 1) CHF exac: Lasix 40 IV BID, I/Os, BMP daily. 2) "
    "DM2: SSI, hold metformin. 3) HTN: cont lisinopril 10. Full code. Dispo: tele.",
    "table of authorities": "Ashcroft v. Iqbal, 556 U.S. 662 (2009)\nBell Atl. Corp. v. Twombly, 550 U.S. 544 (2007)\n"
    "Brown v. Board of Educ., 347 U.S. 483 (1954)\nChevron U.S.A. Inc. v. NRDC, 467 U.S. 837 (1984)\nErie R.R. v. "
    "Tompkins, 304 U.S. 64 (1938)\nMarbury v. Madison, 5 U.S. (1 Cranch) 137 (1803)\nMiranda v. Arizona, 384 U.S. 436 "
    "(1966)\nTerry v. Ohio, 392 U.S. 1 (1968)",
    "warranty in capitals": "THE SOFTWARE IS PROVIDED AS IS, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, "
    "INCLUDING "
    "BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN "
    "NO "
    "EVENT SHALL THE AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN CONTRACT OR IN TORT.",
    "interrogatories": "\n".join(
        f"INTERROGATORY NO. {i}: State all facts on which you rely for your contention that {point}.\nANSWER: "
        f"Objection, "
        "vague and overbroad. Subject to and without waiving the objection, see the documents produced."
        for i, point in enumerate(("the lease ended", "notice was given", "rent was paid", "the roof leaked"), 1)
    ),
    "deposition": "Q. Did you see the car?\nA. Yes.\nQ. What color was it?\nA. Red, I think.\nQ. Was it moving?\nA. "
    "Yes."
    "\nQ. How fast?\nA. I can't say. Maybe 30.\nQ. Did it stop at the light?\nA. No.\nQ. Are you sure of that?\nA. "
    "Yes, I "
    "am.\nQ. Where did you stand?\nA. At the corner, by the bank.",
    "terms clause": PROSE + " By using the site you accept these Terms of Use and the Privacy Policy of the company.",
    "bullets": "\n".join(
        f"• {item}"
        for item in (
            "Active bleeding or a platelet count of less than 50",
            "Known allergy to heparin",
            "Severe renal impairment",
            "Recent surgery of the brain or spine",
            "Uncontrolled hypertension",
            "Pregnancy, unless the benefit outweighs the risk",
        )
    ),
    "formulas": "The hazard is $h(t) = h_{0}(t) e^{\\beta x}$, where $x$ is the dose and $\\beta$ the log of the "
    "ratio. " + PROSE,
    "abstract": "BACKGROUND: Statins lower LDL-C, but their effect in patients aged >75 years is uncertain. METHODS: "
    "We "
    "randomized 1,204 patients to atorvastatin 20 mg or placebo. RESULTS: MACE occurred in 84 of 602 (14.0%) and 112 "
    "of "
    "602 (18.6%) (HR 0.73, 95% CI 0.55-0.97; P=0.03). CONCLUSIONS: Atorvastatin reduced MACE. (NCT01234567)",
    "rate": "§ 47-2714. District of Columbia Village rates.\n(a) The per diem rate to be charged for skilled care "
    "patients "
    "at District of Columbia Village shall be $82.50.\n(b) The per diem rate to be charged for intermediate care "
    "patients at District of Columbia Village shall be $56.00.",
}


@pytest.mark.parametrize("profile", ["web", "professional"])
@pytest.mark.parametrize("kind", JUNK)
def test_junk_is_refused(kind, profile):
    text, reason = QualityFilter(profile).apply(normalise(JUNK[kind]))
    assert reason in RULES, f"kept: {text[:200]}"


@pytest.mark.parametrize("kind", GOOD)
def test_professional_text_is_kept_as_it_is(kind):
    text = normalise(GOOD[kind])
    assert QualityFilter("professional").apply(text) == (text, None)


def test_the_web_profile_refuses_almost_all_of_it():
    quality = QualityFilter("web")
    assert [kind for kind, text in GOOD.items() if not quality.apply(text)[1]] == ["policy statement"]


def test_rules_and_thresholds_that_cannot_be_are_refused_all_at_once():
    overrides = {
        "gopher_min_word": 10,
        "gopher_max_top_2_gram": 1.5,
        "gopher_min_words": -1,
        "c4_cut_citations": 0.5,
        "gopher_max_words": True,
    }
    with pytest.raises(RecipeError) as error:
        QualityFilter("web", overrides)
    unknown, fraction, negative, switch = error.value.problems
    assert unknown.startswith("data.quality.overrides.gopher_min_word: ")
    assert "did you mean gopher_min_words? " in unknown and "fineweb_max_newlines" in unknown
    assert fraction == (
        "data.quality.overrides.gopher_max_top_2_gram: got 1.5; write a fraction from 0 to 1, or false to turn the "
        "rule off"
    )
    assert "gopher_min_words: got -1; write a number of at least 0" in negative
    assert "c4_cut_citations: the rule is on or off, got 0.5; write true or false" in switch


def test_an_override_replaces_leaves_out_or_takes_up_a_rule():
    def verdict(text, profile="professional", **overrides):
        return QualityFilter(profile, overrides).apply(text)

    text = PROSE.replace("roof.", "roof [7].").replace(". ", ".\n")
    assert verdict(text, gopher_min_words=70) == (text, None)
    assert verdict(text, gopher_min_words=80) == (text, "gopher_min_words")
    assert verdict(text, gopher_min_words=False, c4_min_sentences=6) == (text, "c4_min_sentences")
    assert verdict(text, c4_cut_citations=True) == (text.replace(" [7]", " "), None)
    assert verdict(f"{text}\nNo stop here", c4_cut_unpunctuated_lines=True) == (text, None)
    assert verdict(f"{text}\n{text[:50]}\n{text[:50]}")[1] is None
    assert verdict(f"{text}\n{text[:50]}\n{text[:50]}", fineweb_max_repeated_line_chars=True)[1]
    off = dict.fromkeys(RULES, False)
    assert verdict("x", "web", **off) == ("x", None)
    assert QualityFilter("professional", off | {"gopher_max_words": True}).limits == {"gopher_max_words": 100_000}


def test_every_rule_says_on_which_side_it_refuses_and_the_schema_knows_the_profiles():
    for name, rule in RULES.items():
        assert re.fullmatch("(gopher|c4|fineweb|domain)_(min|max|cut)_[a-z0-9_]+", name), name
        assert rule.unit != "switch" or {rule.web, rule.professional} <= {True, False}
    assert Quality().profile == "professional" and Quality(overrides={"gopher_min_words": False}).overrides
    assert pickle.loads(pickle.dumps(QualityFilter("web"))).apply(PROSE) == QualityFilter("web").apply(PROSE)


class Words(WordTokenizer):
    """The words and sentences that text_quality.py uses, for datatrove's filters."""

    def word_tokenize(self, text):
        return WORD.findall(text)

    def sent_tokenize(self, text):
        raise NotImplementedError

    def span_tokenize(self, text):
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        return list(zip([0, *ends], [*ends, len(text)], strict=True))


# How datatrove names what a rule refuses.
DATATROVE_REASONS = {
    "gopher_max_repeated_paragraphs": "dup_para_frac",
    "gopher_max_repeated_paragraph_chars": "dup_para_char_frac",
    "gopher_max_repeated_lines": "dup_line_frac",
    "gopher_max_repeated_line_chars": "dup_line_char_frac",
    **{f"gopher_max_top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"gopher_max_repeated_{n}_grams": f"duplicated_{n}_n_grams" for n in range(5, 11)},
    "gopher_min_words": "gopher_short_doc",
    "gopher_max_words": "gopher_long_doc",
    "gopher_min_mean_word_length": "gopher_below_avg_threshold",
    "gopher_max_mean_word_length": "gopher_above_avg_threshold",
    "gopher_max_hashes": "gopher_too_many_hashes",
    "gopher_max_ellipses": "gopher_too_many_ellipsis",
    "gopher_max_bullet_lines": "gopher_too_many_bullets",
    "gopher_max_ellipsis_lines": "gopher_too_many_end_ellipsis",
    "gopher_min_alphabetic_words": "gopher_below_alpha_threshold",
    "gopher_min_stop_words": "gopher_enough_stop_words",
    "c4_max_lorem_ipsum": "lorem_ipsum",
    "c4_max_curly_brackets": "curly_bracket",
    "c4_min_sentences": "too_few_sentences",
    "fineweb_min_punctuated_lines": "line_punct_ratio",
    "fineweb_max_short_lines": "short_line_ratio",
    "fineweb_max_repeated_line_chars": "char_dup_ratio",
    "fineweb_max_newlines": "list_ratio",
}


def by_datatrove(text: str) -> tuple[str, str | None]:
    """Return what datatrove's filters, in FineWeb's order and with their own thresholds, leave of a text."""
    document = Document(text=text, id="")
    for step in (
        GopherRepetitionFilter(language=Words()),
        GopherQualityFilter(language=Words()),
        C4QualityFilter(language=Words(), filter_no_terminal_punct=False),
        FineWebQualityFilter(language=Words()),
    ):
        result = step.filter(document)
        if result is not True:
            return text, result[1]
    return document.text, None


def made_up_text(seed: int) -> str:
    """Return text in which any of the rules may be broken: few or many words, repeated words, lines and marks."""
    rng = random.Random(seed)
    vocabulary = [
        "the",
        "of",
        "and",
        "Court",
        "lease",
        "12",
        "§",
        "...",
        "#",
        "-",
        "{",
        "a_b",
        "_",
        "policy",
        "x" * 30,
    ]
    vocabulary = rng.sample(vocabulary, rng.randrange(3, 15)) + [
        "".join(rng.choices("aeiost", k=5)) for _ in range(150)
    ]
    weights = [rng.choice([1, 5, 40]) if i < 15 else 3 for i in range(len(vocabulary))]
    lines = []
    for _ in range(rng.randrange(3, 60)):
        length = rng.choice([1, 2, 4, 9, 25])
        line = " ".join(rng.choices(vocabulary, weights, k=length)) + rng.choice(
            [".", "!", ";", "...", "", ". And so. "]
        )
        lines.append(rng.choice(lines) if lines and rng.random() < rng.choice([0, 0.1, 0.5]) else line)
        lines += [""] * (rng.random() < 0.2)
    if rng.random() < 0.1:
        more = ["Lorem ipsum dolor sit amet.", "See our cookie policy.", "Enable JavaScript.", f"Or {'y' * 1100} so."]
        lines.insert(0, rng.choice(more) + " [edit]")
    return "\n".join(lines).strip()


def check_against_datatrove(texts) -> set[str]:
    """Compare the web profile with datatrove's filters on every text and return the rules that were broken."""
    quality, broken = QualityFilter("web"), set()
    for text in texts:
        kept, reason = quality.apply(text)
        assert (kept, DATATROVE_REASONS.get(reason)) == by_datatrove(text), text[:500]
        broken.add(reason)
    return broken


def test_the_web_profile_gives_the_verdicts_of_datatroves_filters():
    broken = check_against_datatrove([text for text in [*JUNK.values(), *GOOD.values()] if text])
    broken |= check_against_datatrove(map(made_up_text, range(200)))
    assert len(broken) > 18, f"only {broken} were tried"


def test_words_are_those_of_the_near_duplicates():
    rng = random.Random(5)
    texts = [
        *GOOD.values(),
        *JUNK.values(),
        "民法第709条 and § 12, naïve «été» हिन्दी\u200dक ²½_Ⅳ\x1f\x85\u2028x",
        "\u0301a",
    ]
    texts += ["".join(chr(rng.randrange(0x3000)) for _ in range(80)) for _ in range(300)]
    texts += ["".join(rng.choices("aZ9_ -é“§ßمक\u0301\t\n", k=80)) for _ in range(300)]
    for text in texts:
        assert words_apart(text, plain=False).decode().split() == WORD.findall(text)


def test_a_very_long_text_is_judged_by_its_beginning(monkeypatch):
    monkeypatch.setattr("corpus.text_quality.MEASURED_CHARS", len(PROSE))
    text = PROSE + " spam" * 1000
    assert QualityFilter("professional").apply(text) == (text, None)
    assert QualityFilter("web").apply(text)[1] is None
    assert QualityFilter("professional").apply("spam " * 1000 + PROSE)[1] == "gopher_max_top_2_gram"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("cafe\u0301 A\u030angstro\u0308m \u2126", "caf\u00e9 \u00c5ngstr\u00f6m \u03a9"),
        ("\ufeffsub\u00adsec\u200btion\u2060 1\u00a0000\u202f\u20ac", "subsection 1 000 \u20ac"),
        ("t\x00e\x00x\x00t\x07\x7f", "text"),
        ("left\u200e right\u202e back\u202c \u2066in\u2069", "left right back in"),
        ("\x93Notes\x94 of the Issuer\x92s \x96 \x80 5\x81", "“Notes” of the Issuer’s – € 5"),
        ("one  \ntwo\t\n \n\n\n\n\n\nthree \n\n", "one\ntwo\n\n\nthree"),
        ("fi\u200cnance x\u200dy", "finance xy"),
        ("see\U000e0068\U000e0069 here", "see here"),
    ],
)
def test_what_looks_the_same_becomes_the_same(given, expected):
    assert normalise(given) == expected


@pytest.mark.parametrize(
    "text",
    [
        "§ 2(a)(1)(B) — “not less than” ½ of 10 m² or 3×10⁻⁶ ™ ﬁ ﬀ ‘x’ – …",
        "• take 1–2 tabs q4–6h PRN, ≤ 8/24 h; µg ≠ mg; T½ 6 h; H₂O; 37 °C",
        "\tCost\t12\n    (A) in general;\n        (i) each   of them\n\n\nif x:\n\treturn",
        "می‌شود",  # Persian: a non-joiner inside the word
        "क्‍ष and क्‌ष",  # Hindi: joiner and non-joiner behind a virama
        "👩‍⚕️ 👨🏽‍⚖️ 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f ❤️",
        "한국어 ไทย עברית \u180e ᠮᠣᠩᠭᠣᠯ",
    ],
)
def test_what_carries_meaning_survives(text):
    assert normalise(text) == unicodedata.normalize("NFC", text)


def test_normalising_twice_is_normalising_once():
    rng = random.Random(7)
    ranges = [(0, 0x300), (0x300, 0x370), (0x590, 0x700), (0x900, 0x980), (0x1100, 0x1200), (0x2000, 0x2070)]
    odd = [
        0x200C,
        0x200D,
        0x200D,
        0xFE0F,
        0xFEFF,
        0x1F3F4,
        0xE0067,
        0xE007F,
        0x1F468,
        0x2329,
        0x3099,
        0x304B,
        0x0A,
        0x0D,
    ]
    for _ in range(8_000):
        codes = [
            rng.choice([rng.randrange(*rng.choice(ranges)), rng.choice(odd), rng.randrange(0x110000)])
            for _ in range(8)
        ]
        once = normalise("".join(map(chr, codes)))
        assert normalise(once) == once, codes
        assert unicodedata.is_normalized("NFC", once), codes


def test_normalising_takes_linear_time():
    signal.alarm(20)
    try:
        for text in (
            " " * 300_000 + "x",
            "\n" * 300_000,
            " \n" * 150_000,
            "\u200d" * 300_000,
            "\u00a0" * 300_000,
        ):
            assert len(normalise("x" + text)) <= len(text) + 1
    finally:
        signal.alarm(0)


def test_languages_are_rated_as_the_model_rates_them():
    _, _, moves, rows, _, _ = load_arrays()
    last, seen = np.zeros(1, dtype=np.int64), np.arange(len(rows)) == 0
    for _ in range(LONGEST_FEATURE):  # no state of the automaton is further from its start
        known = seen.copy()
        for letter in range(256):
            seen[moves[rows[last] + letter]] = True
        last = np.flatnonzero(seen & ~known)
    assert seen.all() and moves[rows[0] + 255] == 0
    texts = ["", "7", "ça", "LES PARTIES CONVIENNENT", "Закон о раду", "zakon o radu", "民法第709条", *GOOD.values()]
    for text in texts:
        rated = dict(zip(load_model().labels, rate_languages(text), strict=True))
        assert rated == pytest.approx(dict(load_model().rank(text)), abs=1e-4)


def test_unknown_languages_are_refused_with_those_that_are_known():
    with pytest.raises(RecipeError) as error:
        LanguageFilter(["en", "english", "xx"])
    first, second = error.value.problems
    assert first.startswith("data.languages.keep.1: unknown language 'english'; did you mean ")
    assert second.startswith("data.languages.keep.2: ") and " de, " in second and " zh, " in second


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("fr", "Le présent contrat est régi par le droit français et tout litige relève des tribunaux de Paris."),
        ("de", "Der Mieter zahlt die Miete monatlich im Voraus, spätestens am dritten Werktag eines jeden Monats."),
        ("es", "El arrendatario pagará la renta mensual por adelantado dentro de los cinco primeros días del mes."),
        ("it", "Il presente contratto è regolato dalla legge italiana e le parti eleggono il foro di Milano."),
        ("ru", "Настоящий договор заключен между сторонами и регулируется законодательством."),
        ("zh", "本合同由甲乙双方签订,受中国法律管辖,自签字之日起生效。"),
        ("ja", "本契約は、甲と乙との間で締結され、日本法に準拠するものとする。"),
        ("hi", "यह अनुबंध भारत के कानूनों के अनुसार होगा और दोनों पक्षों पर बाध्यकारी होगा।"),
        ("fa", "این قرارداد میان دو طرف منعقد می‌شود و تابع قوانین ایران است."),
        ("la", "Actus non facit reum nisi mens sit rea. Audi alteram partem. Ignorantia juris non excusat."),
    ],
)
def test_another_language_is_refused_by_its_code_and_kept_where_it_is_wanted(code, text):
    assert LanguageFilter(["en"]).refuse(text) == f"language_{code}"
    assert LanguageFilter(["en", code]).refuse(text) is None


@pytest.mark.parametrize("kind", GOOD)
def test_professional_english_is_taken_for_english(kind):
    assert LanguageFilter(["en"]).refuse(GOOD[kind]) is None


@pytest.mark.parametrize(
    "text",
    [
        "It is so ordered.",
        "AFFIRMED.",
        "Under the doctrines of res judicata and stare decisis, mens rea and actus reus must coincide; nemo dat quod "
        "non habet, and the writ of habeas corpus ad subjiciendum issues ex parte.",
        "48,310 45,120 (12.5) 42,008",
        "",
    ],
)
def test_short_text_latin_phrases_and_numbers_do_not_count_as_foreign(text):
    assert LanguageFilter(["en"]).refuse(text) is None


def test_a_foreign_title_does_not_decide_and_a_long_text_is_read_to_its_end():
    french = (
        "La société est administrée par un conseil de trois membres au moins et de dix-huit membres au plus, nommés "
        "par l'assemblée générale ordinaire des actionnaires. La durée de leurs fonctions est de six années. Les "
        "administrateurs sont toujours rééligibles et peuvent être révoqués à tout moment par l'assemblée. "
    )
    assert LanguageFilter(["en"]).refuse(french + PROSE * 20) is None
    assert LanguageFilter(["en"]).refuse(PROSE + french * 20) == "language_fr"


def test_beginnings_without_doubt_are_enough_and_any_doubt_takes_the_whole_excerpts(monkeypatch):
    rated = []
    languages = LanguageFilter(["en"])
    rate = languages.rate
    monkeypatch.setattr(languages, "rate", lambda words: rated.append(len(words)) or rate(words))
    assert languages.refuse(PROSE * 5) is None and len(rated) == 1 and rated[0] < 300
    french = "Le tribunal a rejeté la demande du locataire, qui devra payer les frais de la procédure. "
    assert languages.refuse(french * 20) == "language_fr" and len(rated) == 3 and rated[2] > 800


def test_a_higher_probability_refuses_what_is_between_languages():
    languages = Languages(keep=["en"], min_probability=0.999)
    strict = LanguageFilter(languages.keep, languages.min_probability)
    assert strict.refuse(GOOD["medication list"]) == "language_unsure"
    assert strict.refuse(PROSE) is None
    assert LanguageFilter(["en"], 0).refuse("Der Mieter zahlt die Miete monatlich im Voraus.") is None


def test_the_language_filter_pickles_without_its_model():
    pickled = pickle.dumps(LanguageFilter(["en", "fr"], 0.7))
    assert len(pickled) < 500
    assert pickle.loads(pickled).refuse(PROSE) is None
