"""The outline of a hemorrhage as a contour over a slice, drawn from the stored masks
(`ml.scans.volume.write_masks`) without numpy: a mask is represented by the bits of one long
integer.
"""

from __future__ import annotations

from webapp.scans.stored_volume import Color, open_volume, png

CONTOUR: tuple[Color, Color] = ((0, 0, 0, 0), (0, 229, 255, 255))
"""Transparent, and a blue that occurs in neither a slice nor a heat map."""
AS_DIGITS, AS_BYTES = bytes.maketrans(b"\0\1", b"01"), bytes.maketrans(b"01", b"\0\1")
SIDE_PER_PIXEL = 256
"""A contour is one pixel wide for every so many pixels of the slice's longer side, at least one."""


def contour(key: str, index: int) -> bytes:
    """Return the contour around the outlined area in one slice of a stored mask, as a PNG to
    overlay on the slice.

    The line runs outside of the outlined area, so that all of that stays visible. Holes and
    narrow gaps have no contour: it would cover the hemorrhage with lines.

    Raises:
        IndexError: there is no such slice.
        StorageError: it cannot be read.
    """
    stored = open_volume(key)
    width = max(1, round(max(stored.columns, stored.rows) / SIDE_PER_PIXEL))
    # Rotated by 180 degrees, as in `webapp.scans.stored_volume.Volume.png`.
    shown = stored.voxels(index, 1)[::-1]
    return png(_around(shown, stored.columns, width), stored.columns, CONTOUR)


def _around(mask: bytes, columns: int, width: int) -> bytes:
    """Return a mask of bytes that is 1 within `width` pixels around a mask of 0 and 1, and 0 inside
    the mask, in its holes and gaps, and elsewhere.

    Each row gets a margin, so that bits shifted past its end do not reach the next row.
    """
    rows = [mask[start : start + columns] for start in range(0, len(mask), columns)]
    margin, row_bits = bytes(width), columns + 2 * width
    padded = b"".join(margin + row + margin for row in rows)
    bits = int(padded.translate(AS_DIGITS), 2)
    everything = (1 << len(padded)) - 1  # Bits shifted beyond the first row are cut off.
    # Outside of the grown mask, what can be reached; grown back, it leaves out holes and gaps.
    outside = _reached(everything & ~_grown(bits, width, row_bits), row_bits, len(rows))
    outlined = bits | everything & ~_grown(outside, width, row_bits)
    ring = _grown(outlined, width, row_bits) & everything & ~outlined
    drawn = f"{ring:0{len(padded)}b}".encode().translate(AS_BYTES)
    return b"".join(
        drawn[start + width : start + width + columns] for start in range(0, len(drawn), row_bits)
    )


def _grown(bits: int, width: int, row_bits: int) -> int:
    """Return the mask with what lies within `width` pixels of it."""
    for _ in range(width):
        bits |= bits << 1 | bits >> 1
        bits |= bits << row_bits | bits >> row_bits
    return bits


def _reached(free: int, row_bits: int, rows: int) -> int:
    """Return which of the free pixels can be reached from the border of the image."""
    row = (1 << row_bits) - 1
    sides = int(f"1{'0' * (row_bits - 2)}1" * rows, 2)
    reached = (sides | row | row << row_bits * (rows - 1)) & free
    while True:
        near = reached << 1 | reached >> 1 | reached << row_bits | reached >> row_bits
        more = (reached | near) & free
        if more == reached:
            return reached
        reached = more
