"""Drop privileges and limit the memory of a process before it decodes untrusted files, as far as
the kernel allows it without root. Linux only; other systems are not confined.

    python -m ml.confinement          lists the measures that this machine allows

The measures are independent, since hosts allow different ones: Docker forbids new namespaces, and
kernels before 5.13 have no Landlock. With both, a decoder that a malicious file controls can read
only code and its folder, write only to its folder, access no other process and no network, and
start no process.

Sources: man pages landlock(7), user_namespaces(7), pid_namespaces(7), capabilities(7), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

OPEN_FILES = 64
"""Enough for the one file of a scan that a decoder has open at a time, and for the modules that it
loads.
"""

NEW_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000
"""CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET and CLONE_NEWIPC."""
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522

# Landlock's system calls have the same numbers on all architectures.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION, PATH_BENEATH = 1, 1
WRITE_FILE, READ_FILE, READ_DIR, MAKE_REG, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 8, 1 << 14
ALL_OF_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All file rights known to each version of Landlock; a version that is not listed adds none."""
TCP, ABSTRACT_SOCKETS_AND_SIGNALS = 0b11, 0b11
TCP_SINCE, SCOPES_SINCE = 4, 6

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/dev/urandom")
"""Paths that loading a module may need, in addition to Python's own folders."""


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def confine(folder: Path, *, file_bytes: int, memory_bytes: int) -> list[str]:
    """Drop the privileges that decoding does not need; return the names of the measures in effect.

    Call it while the process has a single thread, once all usual modules are loaded. No thread can
    be started afterwards.

    Args:
        folder: the only folder that may be written to, and read apart from Python's modules.
        file_bytes: maximum size of a file that is written.
        memory_bytes: maximum private writable memory (heap, anonymous mappings); allocations beyond
            fail with a MemoryError. RLIMIT_DATA, not RLIMIT_AS: the limit does not depend on the
            mapped libraries or on the size of the output file. Linux enforces it since 4.7.
    """
    if sys.platform != "linux":
        return []
    measures: dict[str, Callable[[], None]] = {
        "no new privileges": _forbid_new_privileges,
        "namespaces": _leave_namespaces,
        "Landlock": lambda: _restrict_to(folder),
        "process limit": lambda: _limit(resource.RLIMIT_NPROC, 0),
        "open files": lambda: _limit(resource.RLIMIT_NOFILE, OPEN_FILES),
        "file size": lambda: _limit(resource.RLIMIT_FSIZE, file_bytes),
        "no capabilities": _drop_capabilities,
        "memory limit": lambda: _limit(resource.RLIMIT_DATA, memory_bytes),
    }
    in_effect = []
    for name, measure in measures.items():
        with suppress(OSError):
            measure()
            in_effect.append(name)
    return in_effect


def code_folders() -> list[Path]:
    """Return the folders of modules and libraries; of this project only `ml`, since the same folder
    may contain a database and keys.
    """
    ml_folder = Path(__file__).resolve().parent
    # Without -P, Python also searches the current folder for modules.
    project = {ml_folder.parent, Path.cwd()}
    on_path = (Path(entry) for entry in sys.path if entry and Path(entry).resolve() not in project)
    return [ml_folder, Path(sys.prefix), Path(sys.base_prefix), *on_path, *map(Path, SYSTEM)]


def _forbid_new_privileges() -> None:
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _leave_namespaces() -> None:
    """Enter new namespaces, without network access, rights over other processes, or new processes.

    The first process of the PID namespace has ended when this returns, and the kernel does not
    start another process in such a namespace: unlike RLIMIT_NPROC, this also applies to root.
    """
    _call("unshare", NEW_NAMESPACES)
    first = os.fork()
    if first == 0:
        os._exit(0)
    os.waitpid(first, 0)


def _restrict_to(folder: Path) -> None:
    """Allow reading only of code and `folder`, and writing only to `folder`.

    Programs cannot be run, TCP and abstract sockets cannot be connected, and other processes cannot
    be signaled or inspected.
    """
    version = _call("syscall", CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION)
    files = ALL_OF_FILES[max(known for known in ALL_OF_FILES if known <= version)]
    rules = _Ruleset(
        files,
        TCP if version >= TCP_SINCE else 0,
        ABSTRACT_SOCKETS_AND_SIGNALS if version >= SCOPES_SINCE else 0,
    )
    size = ctypes.c_size_t(ctypes.sizeof(rules))
    ruleset = _call("syscall", CREATE_RULESET, ctypes.byref(rules), size, 0)
    try:
        _allow(ruleset, code_folders(), READ_FILE | READ_DIR)
        _allow(ruleset, [Path("/dev/null")], READ_FILE | WRITE_FILE)
        writing = WRITE_FILE | MAKE_REG | TRUNCATE
        _allow(ruleset, [folder], (READ_FILE | READ_DIR | writing) & files)
        _call("syscall", RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, paths: Iterable[Path], rights: int) -> None:
    for path in filter(Path.exists, paths):
        # Some rights exist for folders only.
        allowed = rights if path.is_dir() else rights & ~(READ_DIR | MAKE_REG)
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = _Beneath(allowed, opened)
            _call("syscall", ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(opened)


def _limit(which: int, most: int) -> None:
    with suppress(ValueError):  # The limit set from outside is lower.
        resource.setrlimit(which, (most, most))


def _drop_capabilities() -> None:
    """Drop root's capabilities, including those in the new namespaces."""
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _call(name: str, *arguments: object) -> int:
    """Call a function of the C library.

    Raises:
        OSError: it failed, or this library has no such function.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if (function := getattr(library, name, None)) is None:
        raise OSError(f"The C library has no {name}.")
    if (result := int(function(*arguments))) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    measures = confine(Path(tempfile.gettempdir()), file_bytes=2**20, memory_bytes=2**30)
    sys.stdout.write("\n".join(measures) + "\n")
