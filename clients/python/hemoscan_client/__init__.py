"""Hemoscan from Python: submit head-CT scans, wait for their results, download reports.

>>> from hemoscan_client import Client
>>> with Client("https://scans.example.org", token="…") as client:  # doctest: +SKIP
...     jobs = client.submit(["head.dcm"])
...     for scan in client.wait([job.id for job in jobs]):
...         print(scan.result.state, scan.result.probability)

`AsyncClient` has the same methods for `asyncio`. Research use only, never a diagnosis.
"""

from hemoscan_client.client import AsyncClient, Client
from hemoscan_client.errors import (
    ApiError,
    HemoscanError,
    NothingToSend,
    TimedOut,
    Unreachable,
)
from hemoscan_client.operations import Choices
from hemoscan_client.results import Job, ModelVersion, Result, Scan, Slice

__version__ = "0.1.0"

__all__ = [
    "ApiError",
    "AsyncClient",
    "Choices",
    "Client",
    "HemoscanError",
    "Job",
    "ModelVersion",
    "NothingToSend",
    "Result",
    "Scan",
    "Slice",
    "TimedOut",
    "Unreachable",
]
