"""Exceptions whose text is one sentence for the user."""

from __future__ import annotations


class UserError(ValueError):
    """A problem that the user can fix; its text is one sentence for them."""


class ImageError(UserError):
    """A file cannot be read as a CT image; its text is one sentence for the user."""


class BareImageError(ImageError):
    """A scan has too little contrast as a whole, though each slice might be part of a readable
    scan.
    """


class TooLargeError(ImageError):
    """A scan exceeds the size limits."""


class NoSliceError(ImageError):
    """A valid file that holds no slice: a localizer, a report, a color image."""


class ArtifactError(UserError):
    """A model folder is incomplete, altered or of an unknown format; its text is one sentence."""


class DatasetError(UserError):
    """A data set cannot be used; its text is a sentence for the person who gave it, naming the file
    or row.
    """


class SettingError(UserError):
    """A setting is unknown or out of range; its text is a sentence for the person who set it."""
