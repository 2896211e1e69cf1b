# SPDX-License-Identifier: Apache-2.0
"""The sections of the report, one module and one template each; report.py lists them in the order of the page.

`sections/<name>.py` has a function `build(run: RunFiles) -> Section | None`, which reads files and draws figures;
`sections/<name>.html.jinja` renders what it found. Without its files it returns None and is left out. Every table and
figure names the file its numbers come from: `{{ file("training.json") }}`.
"""
