"""The gunicorn configuration for the web application."""

import gc
import os
import resource
from typing import Any

# Nothing that is created at startup is garbage; looking for garbage takes a tenth of the startup
# time. `pre_fork` turns the collector on.
gc.disable()

# HOST=0.0.0.0 opens it to the network: only behind a TLS proxy, or in a container.
bind = f"{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or '8000'}"
# Threads wait for the database and storage in parallel; the second process responds while the first
# one computes.
workers = int(os.environ.get("WEB_PROCESSES") or 2)
worker_class = "webapp.serving.Worker"  # Slow or idle clients do not occupy threads.
threads = int(os.environ.get("WEB_THREADS") or 8)
# Most of them are idle; the address with the most idle connections loses them first.
worker_connections = 2000
# The application is loaded once, and its processes share the memory. It opens no file, connection
# or thread before the fork (`tests/webapp/test_serving.py`).
preload_app = True
# An upload of the maximum size over a slow connection must not be cut off: a thread reads it while
# the process stays responsive.
timeout = 60
graceful_timeout = 8
keepalive = 5
# Heartbeat files in memory if there is such a folder: on a slow disk gunicorn would assume that its
# workers are dead.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# A control socket for gunicorn in the user's home folder, which is not needed and which several
# instances would share.
control_socket_disable = True
loglevel = "warning"
if os.environ.get("LOG_FORMAT") == "json":
    from webapp.logs import json_logging

    logconfig_dict = json_logging()

# Each file of an upload is an open file here, and a series has hundreds; the usual limit is 1,024
# in total.
_, most_open = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(
    resource.RLIMIT_NOFILE, (min(most_open, 65_536) if most_open > 0 else 65_536, most_open)
)


def on_starting(_server: Any) -> None:
    """Remove what uploads left behind when an earlier server was killed."""
    # Imported here because collecting garbage while the application loads takes time (above).
    from webapp.config import settings
    from webapp.intake.spool import empty_incoming

    empty_incoming(settings(os.environ)["INCOMING_DIR"])


def pre_fork(_server: Any, _worker: Any) -> None:
    """Exempt the loaded objects from garbage collection, which would write to each of their
    pages.
    """
    gc.freeze()
    gc.enable()
