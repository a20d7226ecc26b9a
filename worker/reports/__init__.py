"""Reports of a scan as files: a page as PDF, and objects for a DICOM archive."""
