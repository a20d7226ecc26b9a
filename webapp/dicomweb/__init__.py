"""DICOMweb (PS3.18): studies come in by STOW-RS; what Hemoscan made of them is found by QIDO-RS and
retrieved by WADO-RS, with the API's bearer tokens.

The objects are reports (`webapp.models.Report`): structured reports, secondary captures and
segmentations. Images that were sent are not served again.
"""

from webapp.dicomweb import (  # noqa: F401 - they add the transactions, and XML.
    native_model,
    retrieve,
    search,
    store,
)
from webapp.dicomweb.access import blueprint

__all__ = ["blueprint"]
