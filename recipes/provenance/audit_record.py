# SPDX-License-Identifier: Apache-2.0
"""What a leak audit was made from, so that publishing knows whether it is of the model that would be published."""

from pathlib import Path

from atomic_files import file_sha256, read_record


def describe_inputs(run: Path) -> dict[str, str | None]:
    """Return the hashes of a run's model, documents and evaluation; None where there is no evaluation."""
    results = run / "eval" / "results.json"
    hashes = {name: read_record(run / name)["sha256"] for name in ("model", "documents")}
    return hashes | {"results": file_sha256(results) if results.exists() else None}
