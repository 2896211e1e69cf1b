# SPDX-License-Identifier: Apache-2.0
"""Which process is blamed when another waits in vain, at the time limit that recipes have."""

import json
import re
import threading
from contextlib import ExitStack

import pytest

from recipe_config import Run
from recovery.liveness import FOLDER, Liveness


LIMIT = Run.model_fields["timeout_seconds"].default


@pytest.fixture
def five(tmp_path):
    """Processes 0 to 3 of five, which keep their files up to date; they are threads of this one."""
    with ExitStack() as stack:
        yield [stack.enter_context(Liveness(tmp_path, number, 5, LIMIT, print)) for number in range(4)]


def stand_still(process: Liveness, number: int) -> None:
    """Write the file of a process on another machine, once."""
    entry = {"pid": 7, "host": "another", "step": process.step, "beats": 3}
    (process.folder / str(number)).write_text(json.dumps(entry))


def test_only_the_process_that_stands_still_is_blamed_and_those_that_live_are_not(five):
    stand_still(five[0], 4)
    expected = f"process 4 on another (pid 7, step 0) is dead or stopped; run.timeout_seconds={LIMIT:g} limits"
    assert five[0].explain().startswith(expected)


def test_of_processes_that_live_the_one_at_an_earlier_step_is_stuck(five, tmp_path):
    for process in (*five, lively := Liveness(tmp_path, 4, 5, LIMIT, print)):
        process.step = 2 if process is five[3] else 3
        process.write(1)
    with lively:
        assert re.fullmatch(
            r"process 3 on \S+ \(pid \d+, step 2\) is stuck, .* wait for run.timeout_seconds=\d+", five[0].explain()
        )


def test_a_process_that_stands_still_is_named_within_the_limit_and_five_seconds(tmp_path):
    watcher = Liveness(tmp_path, 0, 2, LIMIT, print)
    (tmp_path / FOLDER).mkdir()
    stand_still(watcher, 1)
    looks = 1
    while not watcher.look():
        looks += 1
    assert LIMIT <= looks * watcher.beat_seconds <= LIMIT + 5


def test_when_the_first_machine_falls_silent_a_process_of_the_last_ends_the_run(tmp_path):
    """Processes 0 and 1 of four, on another machine, stand still; 2 and 3 live."""
    ended, reasons = threading.Event(), []

    def end_run(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    with Liveness(tmp_path, 2, 4, 1, end_run) as third, Liveness(tmp_path, 3, 4, 1, end_run):
        for number in (0, 1):
            stand_still(third, number)
        assert ended.wait(30)
    expected = "process 0 on another (pid 7, step 0), process 1 on another (pid 7, step 0) did not move for "
    assert reasons == [f"{expected}run.timeout_seconds=1"]
