"""Starts everything in order, and stops it in reverse order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from webapp.config import PROJECT_ROOT, ConfigurationError, settings
from webapp.embedded.checks import CannotStart, is_taken, only_run_on, port_of, say, wait_until
from webapp.embedded.guard import Guard, guard
from webapp.embedded.processes import Greeting, Processes, commands, threads_of_one_worker
from webapp.embedded.valkey import broker


def main() -> int:
    """Run Hemoscan until a signal arrives or a process cannot run; return the exit status."""
    # Until honcho listens, both signals unwind the stack.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o077)  # Only this user may read scans and keys.
    try:
        with ExitStack() as stack:
            return run(stack)
    except (CannotStart, ConfigurationError) as err:
        say(str(err))
        return 1
    except KeyboardInterrupt:
        return 0


def run(stack: ExitStack) -> int:
    """Start everything in order; `stack` stops it in reverse order."""
    config = settings(os.environ)
    home: Path = config["HEMOSCAN_HOME"]
    port, host = port_of(os.environ.get("PORT") or "8000"), os.environ.get("HOST") or "127.0.0.1"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    was_killed = stack.enter_context(only_run_on(home))
    wait_until(
        lambda: not is_taken(host, port),
        was_killed,
        f"Port {port} is already in use. Choose another one: PORT={port + 1} make run",
    )

    environ = {
        **os.environ,
        "HEMOSCAN_HOME": str(home),
        "PORT": str(port),
        "HOST": host,
        "PYTHONUNBUFFERED": "1",
        "PREDICT_THREADS": os.environ.get("PREDICT_THREADS") or str(threads_of_one_worker()),
        # TensorFlow logs every processor feature that it uses and every missing graphics card; its
        # errors are raised anyway.
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        # Celery warns about running as root, which `make run` may do in a container.
        "PYTHONWARNINGS": os.environ.get(
            "PYTHONWARNINGS", "ignore:You're running the worker with superuser"
        ),
    }
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
    own_broker: Path | None = None if environ.get("BROKER_URL") else config["BROKER_SOCKET"]
    guarding = stack.enter_context(guard(own_broker))
    if own_broker:
        stack.enter_context(broker(home / "broker", own_broker))
    say("Starting Hemoscan; this takes a moment …")
    with stopping_later():
        greeting = Greeting(
            f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}",
            set_up(environ, guarding),
        )
        stack.callback(greeting.say_password_at_least)

    processes = Processes(guarding, greeting)
    # Set by the Makefile.
    for name, command in commands(config, environ.get("INSTALL_TO_TRAIN", "")).items():
        processes.add_process(name, command, env=environ, cwd=str(PROJECT_ROOT))
    return processes.run()


def set_up(environ: Mapping[str, str], guarding: Guard) -> str:
    """Run the setup in a process group of its own, and return what it printed: how to log in for
    the first time.

    Raises:
        CannotStart: it failed.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "webapp.setup", "--brief"],
        cwd=PROJECT_ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as setup:
        guarding.watch(setup.pid)
        printed = setup.communicate()[0].strip()
    guarding.forget(setup.pid)
    if setup.returncode:
        say(printed)
        raise CannotStart(
            f"The setup failed with exit status {setup.returncode}; see its message above."
        )
    return printed


@contextmanager
def stopping_later() -> Iterator[None]:
    """Postpone a request to stop until this context ends, because the first password is shown only
    once. A second request is not postponed.
    """
    was_asked = False

    def note(*_: object) -> None:
        nonlocal was_asked
        if was_asked:
            raise KeyboardInterrupt
        was_asked = True
        say("Stopping as soon as the setup is complete …")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if was_asked:
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
