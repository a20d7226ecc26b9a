"""The DICOM listener: a Storage SCP that accepts studies as uploads are accepted."""
