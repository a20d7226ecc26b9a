"""Benchmark of how expensive uploads and a crowd of clients affect other users.

    python -m bench.overload [--uploads 40] [--clients 500]

Starts the processes of `make run` and measures how long users who only read pages wait: on an idle
service, while small uploads that are expensive to process arrive at once (ZIP archives of JPEG
files with 49,900 empty segments each, and NIfTI files that expand a thousandfold), and while many
clients upload a slice at once. Requests that cannot be served in time must get 429 and
`Retry-After`. The last line is the verdict; the exit status is 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import io
import os
import platform
import sys
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from struct import pack_into

from bench.service import Client, Refused, Service, a_slice, percentile, running_service

EMPTY_SEGMENTS, PICTURES = 49_900, 100
PIXELS, SLICES = 512, 12
"""Uncompressed size of a NIfTI file: 6 MB of zeros, compressed to 6 KB."""
READERS = 4
"""Users who read pages meanwhile, each over a separate connection."""
PAGES = ("/login", "/api/v1/scans", "/healthz")
QUIET_S = 5.0
LIMITS = {
    "others_p95_s": 2.0,
    "health_longest_s": 1.0,
    "lost": 0.0,
    "without_retry_after": 0.0,
    "shed_longest_s": 6.5,
}
"""An upload is rejected at once or, if the queue moves more slowly than expected, after the 5 s for
which it may wait (`webapp.serving`).
"""


@dataclass
class Waits:
    """Seconds that readers waited for each page, and how many requests failed."""

    of_page: dict[str, list[float]] = field(default_factory=lambda: {page: [] for page in PAGES})
    failed: int = 0

    def figures(self) -> dict[str, float]:
        """Return the values of `LIMITS` that concern readers."""
        pages = [seconds for page in PAGES[:2] for seconds in self.of_page[page]]
        return {
            "others_median_s": percentile(pages, 0.5),
            "others_p95_s": percentile(pages, 0.95),
            "health_longest_s": max(self.of_page["/healthz"]),
            "lost": self.failed,
        }


@dataclass
class Answers:
    """The responses to uploads that were sent at once."""

    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By status."""
    lost: int = 0
    without_retry_after: int = 0

    def figures(self) -> dict[str, float]:
        """Return the values of `LIMITS` that concern uploads, and the count of each status."""
        return {
            **{f"status_{status}": len(took) for status, took in sorted(self.seconds.items())},
            "lost": self.lost,
            "without_retry_after": self.without_retry_after,
            "shed_longest_s": max(self.seconds[429], default=0.0),
            "answer_longest_s": max(max(took, default=0.0) for took in self.seconds.values()),
        }


@contextmanager
def readers(service: Service) -> Iterator[Waits]:
    """Read pages meanwhile."""
    waits, over = Waits(), threading.Event()

    def read() -> None:
        while not over.is_set():
            for page in PAGES:
                connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
                began = time.monotonic()
                try:
                    connection.request("GET", page, headers=bearer(service))
                    status = connection.getresponse().status
                except OSError:
                    status = 0
                finally:
                    connection.close()
                waits.of_page[page].append(time.monotonic() - began)
                waits.failed += status != 200
            over.wait(0.05)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    yield waits
    over.set()
    for thread in threads:
        thread.join()


def send_at_once(service: Service, uploads: list[bytes]) -> Answers:
    """Send each of these files over a separate connection, all at the same time."""
    answers, start = Answers(), threading.Barrier(len(uploads))

    def send(content: bytes) -> None:
        client = Client(service.port, service.token)
        start.wait()
        began = time.monotonic()
        try:
            client.upload("file", content)
            status = 202
        except Refused as err:
            status = err.status
            answers.without_retry_after += status == 429 and not err.retry_after
        except (OSError, http.client.HTTPException):
            answers.lost += 1
            return
        finally:
            client.connection.close()
        answers.seconds[status].append(time.monotonic() - began)

    threads = [threading.Thread(target=send, args=(content,), daemon=True) for content in uploads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def bearer(service: Service) -> dict[str, str]:
    """Return the header that authenticates requests."""
    return {"Authorization": f"Bearer {service.token}"}


def archive_of_empty_segments() -> bytes:
    """Return a ZIP archive of JPEG files that consist of empty segments: 30 KB that once took a
    minute.
    """
    jpeg = b"\xff\xd8" + b"\xff\xfe\x00\x02" * EMPTY_SEGMENTS + b"\xff\xd9"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(PICTURES):
            archive.writestr(f"{number}.jpg", jpeg)
    return content.getvalue()


def nifti_of_zeros() -> bytes:
    """Return a compressed NIfTI file of 6 KB that expands to 6 MB."""
    header = bytearray(352)
    pack_into("<i", header, 0, 348)
    pack_into("<8h", header, 40, 3, PIXELS, PIXELS, SLICES, 1, 1, 1, 1)
    pack_into("<2h", header, 70, 4, 16)
    pack_into("<8f", header, 76, 1, 0.5, 0.5, 5, 1, 1, 1, 1)
    pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + bytes(2 * PIXELS * PIXELS * SLICES), 9)


def wait_quietly(_service: Service) -> dict[str, float]:
    """Do nothing for a while."""
    time.sleep(QUIET_S)
    return {}


def measure(uploads: int, clients: int) -> dict[str, dict[str, float]]:
    """Run the service; return the figures of each case."""
    cheap = [archive_of_empty_segments(), nifti_of_zeros()]
    cases: dict[str, Callable[[Service], dict[str, float]]] = {
        "nothing else": wait_quietly,
        f"{uploads} uploads of cheap bytes": lambda service: send_at_once(
            service, [cheap[number % 2] for number in range(uploads)]
        ).figures(),
        f"{clients} clients at once": lambda service: send_at_once(
            service, [a_slice()] * clients
        ).figures(),
    }
    figures = {}
    # The limit on one user's uploads is tested elsewhere.
    with running_service(UPLOADS_PER_MINUTE="100000") as service:
        for case, carry_out in cases.items():
            with readers(service) as waits:
                of_uploads = carry_out(service)
            of_readers = waits.figures()
            lost = of_uploads.get("lost", 0) + of_readers["lost"]
            figures[case] = {**of_readers, **of_uploads, "lost": lost}
    return figures


def main() -> int:
    """Measure, print a line per result and the verdict; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uploads", type=int, default=40, help="of cheap bytes (default 40)")
    parser.add_argument("--clients", type=int, default=500, help="of the crowd (default 500)")
    options = parser.parse_args()
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python"
        f" {platform.python_version()}\n"
    )
    broken = []
    for case, figures in measure(options.uploads, options.clients).items():
        for name, value in figures.items():
            limit = LIMITS.get(name)
            allowed = "" if limit is None else f"  (limit {limit:g})"
            sys.stdout.write(f"{case:32} {name:20} {value:9.2f}{allowed}\n")
            if limit is not None and value > limit:
                broken.append(f"{case}, {name}")
    sys.stdout.write(f"broken: {'; '.join(broken)}\n" if broken else "all limits held\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
