"""Secrets leave the environment of a worker, and nobody may look for them elsewhere in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from webapp.config import PROJECT_ROOT

SCRIPT = """
import ctypes, json, os, sys
from worker.process_secrets import forget_secrets
read = lambda: open(f"/proc/{os.getpid()}/environ", "rb").read().decode()
before = read()
forget_secrets()
inside, outside = os.pipe()
if os.fork() == 0:
    os.write(outside, bytes([ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)]))
    os._exit(0)
environments = {"before": before, "after": read(), "left": dict(os.environ)}
print(json.dumps({**environments, "dumpable": os.read(inside, 1)[0]}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has /proc/PID/environ.")
@pytest.mark.skipif(os.geteuid() != 0, reason="Nobody but root may look afterwards.")
def test_secrets_are_overwritten_not_inherited_and_out_of_reach() -> None:
    secrets = {
        "SECRET_KEY": "secret of the cookies",
        "DATABASE_URL": "postgresql://me:secret@db/name",
        "AWS_SECRET_ACCESS_KEY": "secret of the storage",
    }
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=PROJECT_ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **secrets},
        capture_output=True,
        text=True,
        check=True,
    )
    content = json.loads(ran.stdout)

    assert all(secret in content["before"] for secret in secrets.values())
    assert "secret" not in content["after"].replace("SECRET", "") and "PATH=/" in content["after"]
    assert content["dumpable"] == 0  # Of a process that was forked off, too.
    # The storage's client signs in again and again.
    assert content["left"]["AWS_SECRET_ACCESS_KEY"] == "secret of the storage"
    assert not {"SECRET_KEY", "DATABASE_URL"} & set(content["left"])
