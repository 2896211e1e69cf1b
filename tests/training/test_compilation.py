# SPDX-License-Identifier: Apache-2.0
"""Whether training is compiled: a compiler that does not work is none, and a broken cache is no reason to fail."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import RECIPES, ROOT

from training.compilation import find_missing_compiler, remove_broken_libraries


def write_library(path: Path) -> bytes:
    """Have the compiler write a library, and return its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".cpp")
    source.write_text("int one() { return 1; }\n")
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", path], check=True)
    return path.read_bytes()


def age(path: Path, seconds: float = 60) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'g++: fatal error: cannot execute cc1plus' >&2; exit 1", "does not work .*cannot execute cc1plus"),
        ("exit 3", "does not work .3.; reinstall it"),
    ],
)
def test_a_compiler_that_fails_counts_as_none(script, message, tmp_path, monkeypatch):
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(AssertionError, match=message):
        assert find_missing_compiler() is None, find_missing_compiler()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_libraries_that_a_killed_compiler_left_are_removed_and_whole_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    whole = write_library(tmp_path / "ab" / "whole.main.so")
    for name, content in {
        "empty": b"",
        "first page": whole[:4096],
        "but one byte": whole[:-1],
        "zeros": bytes(len(whole)),
        "being written": b"",
    }.items():
        (tmp_path / "ab" / f"{name}.so").write_bytes(content)
        age(tmp_path / "ab" / f"{name}.so")
    age(tmp_path / "ab" / "whole.main.so")
    age(tmp_path / "ab" / "being written.so", seconds=0)
    assert remove_broken_libraries() == 4
    assert sorted(path.stem for path in tmp_path.rglob("*.so")) == ["being written", "whole.main"]
    assert remove_broken_libraries() == 0


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_run_trains_compiled_after_a_kill_broke_the_cache(tiny_run, tmp_path):
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for name in ("first", "second"):
        run = tiny_run.copy(tmp_path.parent / name)
        argv = run.argv("--training.torch_compile=true", "--training.max_tokens=1024")
        command = [sys.executable, RECIPES / "pretrain.py", *argv]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        libraries = list(tmp_path.rglob("*.so"))
        assert libraries and (name == "first") == ("half-written" not in done.stdout)
        for path in libraries:
            path.write_bytes(path.read_bytes()[:1000])
            age(path)
