# SPDX-License-Identifier: Apache-2.0
"""What ends a script that lacks room, rights or another process: a message in place of a traceback."""

import errno
from collections.abc import Callable


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function.

    Raises: SystemExit: a file cannot be written or read, another process is gone, or a tokenizer fails on a text; the
        reason is the message.
    """
    try:
        main()
    except RuntimeError as error:
        if "gloo" not in str(error) and "NCCL" not in str(error):
            raise
        raise SystemExit("another process of this command ended; its reason is above, if it had one") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise SystemExit(f"{error.strerror}: {error.filename or 'the disk of the run folder'}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust, which no module exports
            raise
        raise SystemExit(f"the tokenizer fails on a text, so the model cannot be scored: {error}") from error
