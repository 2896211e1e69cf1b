# SPDX-License-Identifier: Apache-2.0
"""Writing a safetensors file and computing its sha256 at the same time, from the tensors in memory.

safetensors writes files too, but its header is known only afterwards, so its hash would have to read the file again.
"""

import hashlib
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor


DTYPES = {  # of the format (https://huggingface.co/docs/safetensors)
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict:
    """Write tensors in host memory to a new file, sync it, and return its entry in the manifest."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned, as safetensors orders
    header: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return write_hashed(
        path, [memoryview(struct.pack("<Q", len(text)) + text), *(as_bytes(tensors[n]) for n in names)]
    )


def write_hashed(path: Path, buffers: list[memoryview]) -> dict:
    """Write buffers to a new file, sync it, and return its size and sha256; hashing and writing release the GIL."""
    with ThreadPoolExecutor(1) as hashing, path.open("xb") as file:
        sha256 = hashing.submit(hash_buffers, buffers)
        for buffer in buffers:
            file.write(buffer)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": sum(buffer.nbytes for buffer in buffers), "sha256": sha256.result()}


def hash_buffers(buffers: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the host, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
