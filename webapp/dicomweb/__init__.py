"""DICOMweb (PS3.18): studies are stored by STOW-RS; the results are found by QIDO-RS and retrieved
by WADO-RS, with the API's bearer tokens.

The objects are reports (`webapp.models.Report`): structured reports, secondary captures and
segmentations. Submitted images are not served.
"""

from webapp.dicomweb import (  # noqa: F401 - importing them registers the transactions, and XML.
    native_model,
    retrieve,
    search,
    store,
)
from webapp.dicomweb.access import blueprint

__all__ = ["blueprint"]
