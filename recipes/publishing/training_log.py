# SPDX-License-Identifier: Apache-2.0
"""Write metrics.jsonl as a TensorBoard log, which the Hub draws on a model's page.

The log of training is not copied, because TensorBoard's own writer puts the machine's name into the file name.
"""

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from atomic_files import read_json_lines


LOG_FILE = "runs/events.out.tfevents.0.training"  # the Hub shows files whose names begin so


def write_tensorboard_log(folder: Path) -> None:
    """Write each number of a folder's metrics.jsonl under its own name; times are seconds of training."""
    (folder / LOG_FILE).parent.mkdir(exist_ok=True)
    seconds = 0.0
    with (folder / LOG_FILE).open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
        for record in read_json_lines(folder / "metrics.jsonl"):
            seconds = record.get("train/seconds", seconds)
            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in record.items()
                if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
            ]
            event = Event(wall_time=seconds, step=record["step"], summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.flush()
