# SPDX-License-Identifier: Apache-2.0
"""Finds on a processor what would make the host of a GPU wait: values that it reads, and copies that block."""

import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


LIBRARIES = Path(torch.__file__).parents[1]
READ = ("_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique2", "unique_dim")
MOVES = (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.tensor)


class Reads(TorchDispatchMode):
    """Lists the operators that read a value of a tensor, or whose result's size depends on values."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        chosen = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else []
        by_bool = any(index is not None and index.dtype == torch.bool for index in chosen)
        self.found += [name] if name in READ or by_bool else []
        return function(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Lists in `found` the calls in a `with` block for which the host of a GPU would wait.

    On a processor every tensor is where it has to be, so a copy is recognised by its call: one in the project's code
    that names a device and does not ask for non_blocking, or does for a tensor with gaps, which torch first copies to
    pageable memory. Those in transformers name the device of their tensor.
    """

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.reads = Reads(self.found)

    def __enter__(self) -> "Waits":
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *raised) -> None:
        super().__exit__(*raised)
        self.reads.__exit__(*raised)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        caller = sys._getframe(1).f_code
        waits = function in MOVES and not (kwargs.get("non_blocking") and args[0].is_contiguous())
        if waits and str(LIBRARIES) not in caller.co_filename and moves(function, args, kwargs):
            self.found.append(f"{function.__name__} in {caller.co_name}")
        return function(*args, **kwargs)


def moves(function, args: tuple, kwargs: dict) -> bool:
    """Return whether a call of MOVES names a device; reading a tensor as numpy or a list goes to the host's."""
    if function not in (torch.Tensor.to, torch.tensor):
        return True
    return kwargs.get("device") is not None or any(isinstance(given, torch.device | str) for given in args[1:])
