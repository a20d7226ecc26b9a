"""Exceptions whose message is one sentence for the user."""

from __future__ import annotations


class UserError(ValueError):
    """A problem that the user can fix; the message is one sentence for the user."""


class ImageError(UserError):
    """A file cannot be read as a CT image; the message is one sentence for the user."""


class BareImageError(ImageError):
    """A scan has too little contrast as a whole, though each slice might be part of a readable
    scan.
    """


class TooLargeError(ImageError):
    """A scan exceeds the size limits."""


class NoSliceError(ImageError):
    """A valid file that contains no slice: a localizer, a report, a color image."""


class ArtifactError(UserError):
    """A model folder is incomplete, altered or of an unknown format; the message is one
    sentence.
    """


class DatasetError(UserError):
    """A data set cannot be used; the message is a sentence for whoever supplied it, naming the file
    or row.
    """


class SettingError(UserError):
    """A setting is unknown or out of range; the message is a sentence for whoever set it."""
