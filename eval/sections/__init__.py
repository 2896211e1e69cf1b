# SPDX-License-Identifier: Apache-2.0
"""The sections of the report, one module and one template each; report.py lists them in the order of the page.

A section is `sections/<name>.py` with a function `show(run: RunFiles) -> Shown | None`, which reads its files and
draws its figures, and `sections/<name>.html.jinja`, which renders what it found. Without its files it returns None and
is not on the page. Every table and figure names the file its numbers stand in: `{{ file("training.json") }}`.
"""
