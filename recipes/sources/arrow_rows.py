# SPDX-License-Identifier: Apache-2.0
"""Read the rows of Parquet and Arrow files.

Parquet takes twice its largest page in memory, which writers limit to 1 MB or 1,024 rows, Arrow its largest batch,
usually of 1,000 rows.
"""

import io
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sources import row_checks
from sources.row_checks import NOT_UTF8, Unreadable, describe_damage, is_damage, why_unfit


# Rows of a Parquet file in memory at a time, few because one text in a dictionary can repeat in any number of rows.
PARQUET_BATCH_ROWS = 4
# Above this compression ratio, which text never reaches, a Parquet page must not exceed MAX_ROW_BYTES.
MAX_COMPRESSION_RATIO = 100


def read_parquet(stream: BinaryIO, name: str, span: tuple[int, int] | None = None) -> Iterator[dict | Unreadable]:
    """Yield the rows; for a damaged row group those before the damage, then continue with the next group.

    With a span, only those of the row groups that begin in it; what is wrong with the whole file is for the first one.

    A page is unpacked as a whole, to a size that only its header has. Writers end a page at 1 MB, but check its size
    only every 1,024 rows. Larger pages are refused only in a file with a compression ratio that text never reaches,
    because a file with many long documents has such pages too.
    """
    size_bytes = stream.seek(0, io.SEEK_END)
    try:
        file = pq.ParquetFile(stream, buffer_size=1 << 20, page_checksum_verification=True)
    except Exception as error:
        if span and span[0] and is_damage(error):
            return
        raise
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    suspicious = sum(group.total_byte_size for group in groups) > MAX_COMPRESSION_RATIO * size_bytes
    start, stop = span or (0, size_bytes)
    chosen = groups_in(file.metadata, size_bytes, start, stop)
    promised, listed = file.metadata.num_rows, sum(group.num_rows for group in groups)
    if start == 0 and promised != listed:
        yield Unreadable(name, f"damaged or cut short: {promised:,} rows, of which {listed:,} are listed", 0)
    number = 0
    for index, group in enumerate(groups):
        last = number + group.num_rows
        if index not in chosen:
            number = last
            continue
        page_bytes = int(group.total_byte_size * min(1, 1024 / max(group.num_rows, 1)))
        if suspicious and page_bytes > row_checks.MAX_ROW_BYTES:
            reason = f"unpacks to pages of {page_bytes:,} bytes, from a file of {size_bytes:,}"
            yield Unreadable(f"{name}: rows {number + 1} to {last}", reason, group.total_byte_size)
            number = last
            continue
        try:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=[index], use_threads=False):
                for row in range(len(batch)):
                    number += 1
                    yield convert_row(batch.slice(row, 1), f"{name}: row {number}")
            if number < last:
                raise EOFError("these rows are missing")
        except Exception as error:
            if not is_damage(error):
                raise
            yield Unreadable(f"{name}: rows {number + 1} to {last}", describe_damage(error), group.total_byte_size)
        number = last


def groups_in(metadata: pq.FileMetaData, size_bytes: int, start: int, stop: int) -> range:
    """Return the row groups that begin in a range of a file's bytes.

    Each begins after the earlier ones' part of the file. Where its pages are, damaged metadata can't be asked: Arrow
    ends the process.
    """
    sizes = [max(metadata.row_group(index).total_byte_size, 0) for index in range(metadata.num_row_groups)]
    before = [size * size_bytes // max(sum(sizes), 1) for size in accumulate(sizes, initial=0)]
    starts = [min(start, size_bytes - 1) for start in before[:-1]]
    return range(bisect_left(starts, start), bisect_left(starts, stop))


def read_arrow(stream: BinaryIO, name: str) -> Iterator[dict | Unreadable]:
    """Yield the rows of an Arrow file or stream, as `datasets` writes them; after damage, no more."""
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if is_file:
        file = pa.ipc.open_file(stream)
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(stream))
    number = 0
    for batch in batches:
        for row in range(len(batch)):
            number += 1
            yield convert_row(batch.slice(row, 1), f"{name}: row {number}")


def convert_row(row: pa.RecordBatch, position: str) -> dict | Unreadable:
    """Convert a batch of one row to an example."""
    if row.nbytes > row_checks.MAX_ROW_BYTES:
        return Unreadable(position, f"longer than {row_checks.MAX_ROW_BYTES:,} bytes", row.nbytes)
    try:
        example = row.to_pylist()[0]
    except UnicodeDecodeError:
        return Unreadable(position, NOT_UTF8, row.nbytes)
    except (ValueError, OverflowError) as error:
        return Unreadable(position, f"holds a value out of range: {error}", row.nbytes)
    reason = why_unfit(example)
    return example if reason is None else Unreadable(position, reason, row.nbytes)
