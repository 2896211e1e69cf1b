# SPDX-License-Identifier: Apache-2.0
"""Run a command with the network closed: what Python asks of it beyond this machine is refused and noted.

Where the system allows it, the command also gets a network namespace of its own, without any device: that closes the
network to libraries in other languages too.
"""

import os
import subprocess
from pathlib import Path


# As sitecustomize.py it is run by every Python process that the command starts.
GUARD = """
import os
import sys

HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", os.uname().nodename}
WITH_HOST = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
WITH_ADDRESS = {"socket.connect", "socket.sendto", "socket.sendmsg"}


def guard(event, arguments):
    if event not in WITH_HOST and event not in WITH_ADDRESS:
        return
    host = arguments[0] if event in WITH_HOST else arguments[1]
    if isinstance(host, tuple):
        host = host[0]
    elif event in WITH_ADDRESS:
        return  # the path of a socket on this machine
    if (host.decode() if isinstance(host, bytes) else host) not in HERE:
        with open(os.environ["ASKED_OF_THE_NETWORK"], "a") as file:
            file.write(f"{event} {host} by {sys.argv}\\n")
        raise ConnectionRefusedError(f"the network is closed: {event} {host}")


sys.addaudithook(guard)
"""


class ClosedNetwork:
    """The environment and the beginning of a command without a network. Args: folder: for the guard and its notes."""

    def __init__(self, folder: Path):
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(GUARD)
        self.notes = folder / "asked.txt"
        self.environment = os.environ | {"PYTHONPATH": str(folder), "ASKED_OF_THE_NETWORK": str(self.notes)}
        self.environment.pop("HF_HUB_OFFLINE", None)  # it would hide what is asked
        own = ["unshare", "--map-root-user", "--net"]
        try:
            allowed = subprocess.run([*own, "true"], capture_output=True).returncode == 0
        except FileNotFoundError:
            allowed = False
        self.prefix = own if allowed else []

    def asked(self) -> list[str]:
        """Return what was asked of the network."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []
