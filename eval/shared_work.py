# SPDX-License-Identifier: Apache-2.0
"""Work in pieces: shared among processes, kept as it is finished, and the same numbers whoever does it.

What a piece is, and so which texts are read in one batch, never depends on the number of processes. A piece that is
finished is a file named by what it was made from: an evaluation that was stopped goes on with the pieces that lack.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm


class SharedWork:
    """Does pieces of work on all processes of `accelerate launch`.

    Args:
        folder: where finished pieces are kept; None keeps none.
        made_from: what every result depends on beside its piece, such as the model's hash; part of a piece's name.
    """

    def __init__(self, folder: Path | None = None, made_from: dict | None = None):
        self.folder, self.made_from = folder, made_from or {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def map(self, kind: str, pieces: list, work: Callable, description: str) -> list:
        """Return work(piece) of every piece, in order, on every process.

        Args:
            kind: what the work is; the same pieces under another kind are other work.
            pieces: anything that JSON holds.
            work: its result must be something that JSON gives back as it was; floats are.
            description: what the progress bar says.
        """
        state = PartialState()
        mine = range(state.process_index, len(pieces), state.num_processes)
        results = {
            index: self._done_once(kind, pieces[index], work)
            for index in tqdm(mine, desc=description, leave=False, disable=not state.is_main_process)
        }
        merged = {index: result for part in gather_object([results]) for index, result in part.items()}
        return [merged[index] for index in range(len(pieces))]

    def _done_once(self, kind: str, piece: object, work: Callable) -> object:
        if self.folder is None:
            return work(piece)
        made_from = json.dumps([kind, self.made_from, piece], sort_keys=True)
        path = self.folder / f"{hashlib.sha256(made_from.encode()).hexdigest()}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        result = work(piece)
        new = path.with_suffix(f".{os.getpid()}.tmp")
        new.write_text(json.dumps(result), encoding="utf-8")
        os.replace(new, path)
        return result
