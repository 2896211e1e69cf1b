# SPDX-License-Identifier: Apache-2.0
"""Share pieces of work among processes and keep finished pieces, so that a stopped evaluation can resume.

The pieces, and so the batches of texts, never depend on the number of processes: any number gives the same results. A
finished piece is a file named by the hash of its inputs, with a hash of its result.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from limits import NotScored


class SharedWork:
    """Runs pieces of work on all processes of `accelerate launch`.

    Args:
        folder: for finished pieces; None keeps none.
        made_from: other inputs of every result, such as the model's hash; part of each file's name.
    """

    def __init__(self, folder: Path | None = None, made_from: dict | None = None):
        self.folder, self.made_from = folder, made_from or {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def map(self, kind: str, pieces: list, work: Callable, description: str) -> list:
        """Return work(piece) for every piece, in order, on every process.

        Args:
            kind: of the work; the same pieces under another kind are other work.
            pieces: values that JSON can hold.
            work: its results must survive a round trip through JSON, as floats do.
            description: label of the progress bar.

        Raises: NotScored: in every process if in one, or the others would wait for it.
        """
        state = PartialState()
        mine = range(state.process_index, len(pieces), state.num_processes)
        results, problem = {}, None
        try:
            for index in tqdm(mine, f"evaluate: {description}", leave=False, disable=not state.is_main_process):
                results[index] = self._done_once(kind, pieces[index], work)
        except NotScored as error:
            problem = str(error)
        parts = gather_object([(results, problem)])
        if problems := [text for _, text in parts if text is not None]:
            raise NotScored(problems[0])
        merged = {index: result for part, _ in parts for index, result in part.items()}
        return [merged[index] for index in range(len(pieces))]

    def _done_once(self, kind: str, piece: object, work: Callable) -> object:
        if self.folder is None:
            return work(piece)
        made_from = json.dumps([kind, self.made_from, piece], sort_keys=True)
        path = self.folder / f"{hashlib.sha256(made_from.encode()).hexdigest()}.json"
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                if kept["sha256"] == hash_value(kept["result"]):
                    return kept["result"]
            except (ValueError, TypeError, KeyError):
                pass  # damaged, or of an earlier version, which kept no hash
            sys.stderr.write(f"evaluate: a piece is scored again: {path} is not as it was written\n")
        result = work(piece)
        new = path.with_suffix(f".{os.getpid()}.tmp")
        new.write_text(json.dumps({"result": result, "sha256": hash_value(result)}), encoding="utf-8")
        os.replace(new, path)
        return result


def hash_value(value: object) -> str:
    """Return the hash of a value as it is after a round trip through JSON."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()
