# SPDX-License-Identifier: Apache-2.0
"""What a model wrote is redacted before it is published."""

import pytest

from publishing.sample_redaction import LEFT_OUT, redact_report, redact_results, sample_redactor
from recipe_config import RecipeError
from recipe_loading import load_recipe
from stages import ROOT


DATA = """
def extract_text(example, source):
    return example["text"]


def redact(text, source):
    assert source == "generated"
    if "Eve" in text:
        raise LookupError("no model")
    return text.replace("Dora Pell", "[NAME]")
"""


def redactor(tmp_path, data=DATA):
    (tmp_path / "data.py").write_text(data)
    settings = "{profile: general, actions: {iban: drop, ip: leave}}"
    overrides = [f"--data.extract_text={tmp_path / 'data.py'}", f"--data.personal_data={settings}"]
    overrides += ["--data.sources=[{name: mine, path: texts}]"]
    return sample_redactor(load_recipe([ROOT / "recipes" / "custom" / "base.yaml"], overrides))


def test_samples_pass_through_the_patterns_and_the_recipes_redact(tmp_path):
    given = ["Dora Pell, dora@firm.org", "the court", "IBAN DE89370400440532013000", "from 77.91.104.27"]
    results = {"samples": [{"prompt": "Mail dora@firm.org:", "text": text} for text in given]}
    assert redact_results(results, redactor(tmp_path)) == 2
    assert [sample["text"] for sample in results["samples"]] == [
        "[NAME], email@example.com",
        "the court",
        LEFT_OUT,
        "from 77.91.104.27",
    ]


def test_a_report_keeps_all_but_its_samples_and_loses_underlines_only_where_one_changes(tmp_path):
    page = (
        "<p>support@firm.org</p><blockquote><strong>A &amp; B</strong>{}</blockquote>"
        '<table><tr><th>step</th><td class="text long">{}</td><td>dora@firm.org</td></tr></table>'
    )
    given = page.format("<u>Dora</u> Pell &lt;dora<u>@firm.org</u>&gt;", "The <u>court</u> &amp; dora@firm.org")
    expected = page.format("[NAME] &lt;email@example.com&gt;", "The court &amp; email@example.com")
    assert redact_report(given, redactor(tmp_path)) == expected
    same = page.format("The <u>court</u> &amp; co", "&quot;no one&quot;")
    assert redact_report(same, redactor(tmp_path)) == same


def test_a_redact_that_fails_stops_the_release(tmp_path):
    with pytest.raises(RecipeError, match=r"data\.py: redact raises LookupError: no model, on a sample"):
        redactor(tmp_path)("Eve said")


def test_a_data_script_without_redact_is_not_imported_to_publish(tmp_path):
    assert redactor(tmp_path, "import a_library_of_another_machine\n")("Eve, a@b.org") == "Eve, email@example.com"
