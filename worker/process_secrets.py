"""The secrets in a worker's environment: they are overwritten once the settings are read, so that
no other process can read them.
"""

from __future__ import annotations

import ctypes
import os
import sys

SETTINGS = (
    "SECRET_KEY",
    "DATABASE_URL",
    "BROKER_URL",
    "METRICS_TOKEN",
    "HEMOSCAN_PASSWORD",
    "NOTIFY_EMAIL_URL",
    "NOTIFY_CHAT_URL",
    "NOTIFY_WEBHOOK_URL",
    "NOTIFY_WEBHOOK_SECRET",
    "DICOM_DESTINATIONS",
)
"""Read into the configuration once; not needed afterwards."""
OF_STORAGE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Read by the storage's client whenever it signs in, from Python's copy of the environment."""
PR_SET_DUMPABLE = 4


def forget_secrets() -> None:
    """Remove the secrets from this process's environment, and deny other processes of the same user
    access to its memory and files.

    Processes started later inherit none of the settings; forked processes are protected in the same
    way.
    """
    for name in (*SETTINGS, *OF_STORAGE):
        _overwrite(name)
    for name in SETTINGS:
        os.environ.pop(name, None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _overwrite(name: str) -> None:
    """Overwrite the value in the system's copy: /proc/PID/environ shows the initial environment of
    a process, even after variables are removed. Python has its own copy in `os.environ`.
    """
    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_void_p
    if address := library.getenv(os.fsencode(name)):
        ctypes.memset(address, 0, len(ctypes.string_at(address)))
