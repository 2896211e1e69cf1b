# SPDX-License-Identifier: Apache-2.0
"""What ends a script that lacks room, rights or another process, a message in place of a traceback; bounds of YAML."""

import errno
from collections.abc import Callable

from ruamel.yaml import YAML


MAX_YAML_CHARACTERS, MAX_YAML_DEPTH = 1 << 20, 32


class NotScored(ValueError):
    """A model was loaded and gives no score, as with numbers that are not finite."""

    @classmethod
    def of_numbers(cls, what: str, dtype: object) -> "NotScored":
        """Return the error of numbers that are not finite: what they are, and the type that was computed in."""
        return cls(f"{what}; the weights are damaged, or the numbers overflow in {dtype}: use float32")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function.

    Raises: SystemExit: a file cannot be written or read, another process is gone, a tokenizer fails on a text, or a
        model gives no score; the reason is the message.
    """
    try:
        main()
    except NotScored as error:
        raise SystemExit(str(error)) from error
    except RuntimeError as error:
        if "gloo" not in str(error) and "NCCL" not in str(error):
            raise
        raise SystemExit("another process of this command ended; its reason is above, if it had one") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise SystemExit(f"too many files are open: {error}; raise the limit by `ulimit -n 4096`") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise SystemExit(f"{error.strerror}: {error.filename or 'the disk of the run folder'}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust, which no module exports
            raise
        raise SystemExit(f"the tokenizer fails on a text, so the model cannot be scored: {error}") from error


def read_yaml(text: str) -> object:
    """Parse YAML of plain data; a tag that runs code is refused.

    Raises: ValueError: it is no such YAML, or of a size or depth that takes minutes to parse.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"{len(text):,} characters, more than {MAX_YAML_CHARACTERS:,}")
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_YAML_DEPTH
    try:
        return yaml.load(text)
    except Exception as error:  # a parser may have bugs that nobody has met
        raise ValueError(str(error) or type(error).__name__) from error
