# SPDX-License-Identifier: Apache-2.0
"""What ends a script that lacks room or rights: a message in place of a traceback."""

import errno
from collections.abc import Callable


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function.

    Raises: SystemExit: a file cannot be written or read; the error, with the file, is the message.
    """
    try:
        main()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise SystemExit(f"{error.strerror}: {error.filename or 'the disk of the run folder'}") from error
