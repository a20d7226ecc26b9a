"""One tree of errors whose text is one sentence for a person."""

from __future__ import annotations


class UserError(ValueError):
    """Something that a person can mend; its text is one sentence for them."""


class ImageError(UserError):
    """A file cannot be read as a CT image; its text is one sentence for the user."""


class BareImageError(ImageError):
    """A scan shows too little to be read, though each of its slices might stand in a scan that
    shows more.
    """


class TooLargeError(ImageError):
    """A scan as a whole is larger than what is read."""


class NoSliceError(ImageError):
    """A file of a scan is sound but shows no slice: a localizer, a report, a picture in color."""


class ArtifactError(UserError):
    """A model folder is incomplete, altered or of an unknown format; its text is one sentence."""


class DatasetError(UserError):
    """A data set cannot be used; its text is a sentence for the person who gave it, naming the file
    or row.
    """


class SettingError(UserError):
    """A setting is unknown or out of range; its text is a sentence for the person who set it."""
