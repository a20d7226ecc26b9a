"""Phantoms of other anatomy in CT and of other modalities, made of ellipses, waves and noise,
without patient data.

CT is in Hounsfield units or in a soft tissue, lung, bone or brain window; the others are gray
images.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.scans.slices import FloatArray, Slice, window

AIR_HU, LUNG_HU, FAT_HU, WATER_HU, MUSCLE_HU, ORGAN_HU, SPONGY_HU, BONE_HU = (
    -1000,
    -820,
    -95,
    5,
    55,
    70,
    250,
    900,
)
WINDOWS_HU = ((40, 400), (50, 350), (-600, 1500), (400, 1800), (40, 80))
SIZES = (256, 320, 512)


class _Sheet:
    """A square image in which ellipses with irregular outlines are filled; coordinates run from -1
    to 1, y downward.
    """

    def __init__(self, rng: np.random.Generator, ground: float) -> None:
        self.rng = rng
        self.side = int(rng.choice(SIZES))
        self.y, self.x = np.mgrid[-1 : 1 : self.side * 1j, -1 : 1 : self.side * 1j].astype(
            np.float32
        )
        self.values = np.full((self.side, self.side), ground, np.float32)

    def inside(
        self,
        x: float,
        y: float,
        wide: float,
        high: float,
        wobble: float = 0.04,
        turn_deg: float = 0.0,
    ) -> NDArray[np.bool_]:
        """Return the mask of an ellipse with half axes `wide` and `high`."""
        turn = np.deg2rad(turn_deg)
        across, down = self.x - x, self.y - y
        u = (across * np.cos(turn) + down * np.sin(turn)) / wide
        v = (-across * np.sin(turn) + down * np.cos(turn)) / high
        angle = np.arctan2(v, u)
        ripple = sum(
            self.rng.normal(0, wobble / k) * np.cos(k * angle + self.rng.uniform(0, 6))
            for k in (2, 3, 4, 6)
        )
        return np.asarray(np.hypot(u, v) < 1 + ripple)

    def fill(
        self,
        value: float,
        x: float,
        y: float,
        wide: float,
        high: float,
        wobble: float = 0.04,
        turn_deg: float = 0.0,
    ) -> NDArray[np.bool_]:
        """Fill an ellipse and return its mask.

        More than seven parameters, because an ellipse at an angle has five numbers besides its
        value and how uneven its outline is.
        """
        where = self.inside(x, y, wide, high, wobble, turn_deg)
        self.values[where] = value
        return where

    def bone(self, x: float, y: float, wide: float, high: float, turn_deg: float = 0.0) -> None:
        """Fill a bone: a dense shell around spongy bone."""
        self.fill(BONE_HU * self.rng.uniform(0.7, 1.3), x, y, wide, high, 0.05, turn_deg)
        self.fill(
            SPONGY_HU * self.rng.uniform(0.4, 1.3), x, y, wide * 0.75, high * 0.75, 0.05, turn_deg
        )

    def texture(self, amount: float, cells: int) -> FloatArray:
        """Return smooth noise with that many cells per side."""
        coarse = self.rng.normal(0, amount, (cells, cells)).astype(np.float32)
        return np.asarray(
            cv2.resize(coarse, (self.side, self.side), interpolation=cv2.INTER_CUBIC), np.float32
        )

    def ct(self) -> Slice:
        """Return the image as CT with realistic noise and sharpness, in HU or in one of the
        windows.
        """
        rng = self.rng
        blurred = cv2.GaussianBlur(self.values, (0, 0), self.side / 512)
        grain = cv2.GaussianBlur(
            np.asarray(rng.standard_normal(blurred.shape), np.float32), (0, 0), 0.9
        )
        hu = np.clip(
            blurred + np.where(blurred > -950, grain / grain.std() * rng.uniform(4, 18), 0),
            -1000,
            3000,
        ).astype(np.float32)
        if rng.random() < 0.4:
            return Slice(hu, "hu")
        return Slice(window(hu, *WINDOWS_HU[int(rng.integers(len(WINDOWS_HU)))]), "display")

    def gray(self, noise: float = 0.03, blur: float = 1.0) -> Slice:
        """Return the image as one of another modality, 0..1."""
        values = cv2.GaussianBlur(self.values, (0, 0), blur * self.side / 400)
        return Slice(
            np.clip(values + self.rng.normal(0, noise, values.shape), 0, 1).astype(np.float32),
            "display",
        )


def _trunk(rng: np.random.Generator, wide: float, high: float) -> _Sheet:
    """Return skin, fat, muscles and spine of a supine patient on a table."""
    sheet = _Sheet(rng, AIR_HU)
    if rng.random() < 0.6:
        sheet.fill(-300, 0, high + 0.09, 0.8, 0.04, 0)
    sheet.fill(MUSCLE_HU, 0, 0, wide, high, 0.03)
    sheet.fill(FAT_HU, 0, 0, wide * 0.98, high * 0.975, 0.03)
    thick = rng.uniform(0.72, 0.95)
    sheet.fill(MUSCLE_HU, 0, 0, wide * thick, high * thick, 0.03)
    return sheet


def _spine(sheet: _Sheet, y: float) -> None:
    sheet.bone(0, y, 0.11, 0.09)
    sheet.fill(20, 0, y + 0.13, 0.04, 0.035)
    for side in (-1, 1):
        sheet.bone(side * 0.12, y + 0.12, 0.08, 0.03, side * 20)
    sheet.bone(0, y + 0.22, 0.025, 0.07)


def chest_ct(rng: np.random.Generator) -> Slice:
    """Lungs, heart, aorta, ribs."""
    wide, high = rng.uniform(0.75, 0.95), rng.uniform(0.5, 0.68)
    sheet = _trunk(rng, wide, high)
    for side in (-1, 1):
        where = sheet.fill(
            LUNG_HU, side * wide * 0.45, -0.02, wide * 0.36, high * 0.66, 0.05, side * 8
        )
        sheet.values[where] += np.maximum(sheet.texture(220, 48)[where], 0)
        for angle in np.linspace(-2.4, 2.4, 7):
            sheet.bone(
                side * wide * 0.82 * np.cos(angle * 0.6),
                high * 0.82 * np.sin(angle * 0.6),
                0.05,
                0.025,
                np.rad2deg(angle) * side,
            )
    sheet.fill(rng.uniform(40, 250), -0.08, -0.08, 0.28, 0.24)
    sheet.fill(rng.uniform(40, 300), -0.15, high * 0.45, 0.07, 0.07)
    _spine(sheet, high * 0.5)
    return sheet.ct()


def abdomen_ct(rng: np.random.Generator) -> Slice:
    """Liver, spleen, kidneys, stomach, bowel with gas."""
    wide, high = rng.uniform(0.7, 0.95), rng.uniform(0.48, 0.7)
    sheet = _trunk(rng, wide, high)
    sheet.fill(FAT_HU, 0, -0.02, wide * 0.7, high * 0.68)
    sheet.fill(ORGAN_HU + rng.uniform(-20, 60), -wide * 0.35, -0.08, wide * 0.34, high * 0.5)
    sheet.fill(ORGAN_HU + rng.uniform(-20, 50), wide * 0.5, 0.08, wide * 0.15, high * 0.3, 0.05, 20)
    for side in (-1, 1):
        sheet.fill(rng.uniform(30, 200), side * wide * 0.34, high * 0.32, 0.1, 0.13)
    for _ in range(rng.integers(3, 9)):
        x, y, radius = (
            rng.uniform(-0.4, 0.5) * wide,
            rng.uniform(-0.5, 0.1) * high,
            rng.uniform(0.04, 0.13),
        )
        sheet.fill(rng.uniform(20, 60), x, y, radius, radius * 0.8)
        sheet.fill(rng.choice([AIR_HU, 15, 300]), x, y - radius * 0.2, radius * 0.6, radius * 0.45)
    sheet.fill(rng.uniform(40, 250), -0.04, high * 0.3, 0.05, 0.05)
    _spine(sheet, high * 0.5)
    return sheet.ct()


def pelvis_ct(rng: np.random.Generator) -> Slice:
    """Iliac bones or hips, sacrum, bladder."""
    wide, high = rng.uniform(0.75, 0.95), rng.uniform(0.45, 0.6)
    sheet = _trunk(rng, wide, high)
    for side in (-1, 1):
        sheet.bone(
            side * wide * 0.55,
            rng.uniform(-0.05, 0.1),
            rng.uniform(0.06, 0.16),
            rng.uniform(0.16, 0.28),
            side * rng.uniform(10, 40),
        )
    sheet.fill(rng.uniform(0, 15), 0, -high * 0.3, 0.24, 0.16)
    sheet.fill(45, 0, 0.06, 0.1, 0.07)
    sheet.bone(0, high * 0.55, 0.2, 0.1)
    return sheet.ct()


def shoulders_ct(rng: np.random.Generator) -> Slice:
    """Shoulder level: broad, with humeral heads, clavicles and trachea."""
    wide, high = rng.uniform(0.85, 0.97), rng.uniform(0.28, 0.42)
    sheet = _trunk(rng, wide, high)
    for side in (-1, 1):
        sheet.bone(side * wide * 0.75, 0, 0.11, 0.11)
        sheet.bone(side * wide * 0.4, -high * 0.4, 0.2, 0.03, side * -15)
        sheet.bone(side * wide * 0.5, high * 0.4, 0.2, 0.03, side * 25)
    sheet.fill(AIR_HU, 0, -high * 0.3, 0.05, 0.06)
    _spine(sheet, high * 0.25)
    return sheet.ct()


def _limb(
    rng: np.random.Generator,
    sheet: _Sheet,
    x: float,
    radius: float,
    bones: tuple[tuple[float, float, float], ...],
) -> None:
    sheet.fill(MUSCLE_HU, x, 0, radius, radius * rng.uniform(0.85, 1.15), 0.04)
    sheet.fill(FAT_HU, x, 0, radius * 0.96, radius * 0.96, 0.04)
    thick = rng.uniform(0.65, 0.9)
    sheet.fill(MUSCLE_HU, x, 0, radius * thick, radius * thick, 0.06)
    for across, down, size in bones:
        sheet.bone(
            x + across * radius, down * radius, size * radius, size * radius * rng.uniform(0.8, 1.2)
        )


def knee_ct(rng: np.random.Generator) -> Slice:
    """One knee or two: condyles and the patella, or a thigh or a calf."""
    sheet = _Sheet(rng, AIR_HU)
    bones = [
        ((-0.25, 0.1, 0.33), (0.28, 0.1, 0.33), (0.0, -0.65, 0.2)),
        ((0.05, 0.0, 0.25),),
        ((0.1, -0.2, 0.28), (-0.45, 0.25, 0.12)),
    ][int(rng.integers(3))]
    if rng.random() < 0.5:
        for side in (-1, 1):
            _limb(rng, sheet, side * 0.48, rng.uniform(0.3, 0.42), bones)
    else:
        _limb(rng, sheet, rng.uniform(-0.1, 0.1), rng.uniform(0.5, 0.85), bones)
    return sheet.ct()


def forearm_ct(rng: np.random.Generator) -> Slice:
    """Radius and ulna, or humerus."""
    sheet = _Sheet(rng, AIR_HU)
    bones = ((-0.35, 0.1, 0.22), (0.35, -0.05, 0.2)) if rng.random() < 0.6 else ((0.0, 0.0, 0.3),)
    _limb(rng, sheet, rng.uniform(-0.2, 0.2), rng.uniform(0.35, 0.75), bones)
    return sheet.ct()


def foot_ct(rng: np.random.Generator) -> Slice:
    """A row of toes or metatarsal bones, or the heel."""
    sheet = _Sheet(rng, AIR_HU)
    sheet.fill(MUSCLE_HU, 0, 0, rng.uniform(0.6, 0.85), rng.uniform(0.28, 0.45), 0.05)
    for x in np.linspace(-0.5, 0.5, int(rng.integers(2, 6))):
        sheet.bone(
            float(x), rng.uniform(-0.08, 0.08), rng.uniform(0.07, 0.11), rng.uniform(0.08, 0.14)
        )
    return sheet.ct()


def _brain_mr(
    rng: np.random.Generator, scalp: float, bone: float, csf: float, gray: float, white: float
) -> Slice:
    """Return a brain in MR: scalp fat bright, bone dark."""
    sheet = _Sheet(rng, 0.02)
    wide, high = rng.uniform(0.6, 0.75), rng.uniform(0.75, 0.92)
    sheet.fill(scalp, 0, 0, wide, high, 0.015)
    sheet.fill(bone, 0, 0, wide * 0.94, high * 0.95, 0.01)
    brain = sheet.fill(csf, 0, 0, wide * 0.87, high * 0.89, 0.01)
    cortex = sheet.inside(0, 0, wide * 0.855, high * 0.875, 0.02) & (sheet.texture(1, 40) > -0.9)
    sheet.values[cortex] = gray
    inner = (
        sheet.inside(0, 0, wide * 0.74, high * 0.77, 0.06) & brain & (sheet.texture(1, 24) > -0.8)
    )
    sheet.values[inner] = white
    for side in (-1, 1):
        sheet.fill(csf, side * 0.1, -0.12, 0.05, 0.2, 0.05, side * 12)
        sheet.fill(gray, side * 0.2, 0.05, 0.08, 0.14, 0.05)
    if rng.random() < 0.4:
        sheet.fill(rng.uniform(0, 1), rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.4), 0.1, 0.1, 0.1)
    bias = 1 + sheet.texture(0.1, 3)
    sheet.values = np.clip(sheet.values * bias, 0, 1)
    return sheet.gray(rng.uniform(0.01, 0.04), rng.uniform(0.6, 1.4))


def brain_mr_t1(rng: np.random.Generator) -> Slice:
    """T1: bright fat, white matter brighter than gray, dark fluid."""
    return _brain_mr(
        rng,
        rng.uniform(0.8, 1),
        rng.uniform(0.03, 0.15),
        rng.uniform(0.08, 0.2),
        rng.uniform(0.35, 0.5),
        rng.uniform(0.55, 0.75),
    )


def brain_mr_t2(rng: np.random.Generator) -> Slice:
    """T2: bright fluid, gray matter brighter than white."""
    return _brain_mr(
        rng,
        rng.uniform(0.3, 0.8),
        rng.uniform(0.02, 0.1),
        rng.uniform(0.8, 1),
        rng.uniform(0.45, 0.6),
        rng.uniform(0.25, 0.4),
    )


def brain_mr_flair(rng: np.random.Generator) -> Slice:
    """FLAIR, diffusion: dark fluid, bright brain, often nothing around it."""
    scalp = rng.choice([0.02, rng.uniform(0.3, 0.7)])
    return _brain_mr(
        rng,
        scalp,
        rng.uniform(0.02, 0.08),
        rng.uniform(0.03, 0.12),
        rng.uniform(0.5, 0.8),
        rng.uniform(0.4, 0.65),
    )


def body_mr(rng: np.random.Generator) -> Slice:
    """A trunk or a joint in MR: bright fat, gray muscles, black bone."""
    sheet = _Sheet(rng, 0.02)
    wide, high = rng.uniform(0.5, 0.95), rng.uniform(0.45, 0.9)
    sheet.fill(rng.uniform(0.6, 1), 0, 0, wide, high, 0.05)
    sheet.fill(rng.uniform(0.2, 0.5), 0, 0, wide * 0.85, high * 0.85, 0.05)
    for _ in range(rng.integers(4, 12)):
        radius = rng.uniform(0.05, 0.25)
        x, y = rng.uniform(-0.6, 0.6) * wide, rng.uniform(-0.6, 0.6) * high
        sheet.fill(rng.uniform(0, 1), x, y, radius, radius * rng.uniform(0.4, 1.2), 0.1)
    return sheet.gray(rng.uniform(0.01, 0.05))


def chest_xray(rng: np.random.Generator) -> Slice:
    """A chest radiograph, which fills the image: dark lungs, ribs across."""
    sheet = _Sheet(rng, rng.uniform(0.55, 0.8))
    for side in (-1, 1):
        sheet.values -= 0.4 * sheet.inside(side * 0.38, -0.05, 0.28, 0.6, 0.05, side * -6)
        for y in np.linspace(-0.6, 0.5, 8):
            rib = (
                np.abs(sheet.y - y - 0.35 * (sheet.x - side * 0.4) ** 2 - side * 0.1 * sheet.x)
                < 0.018
            )
            sheet.values[rib & (np.abs(sheet.x - side * 0.38) < 0.33)] += 0.1
    sheet.values[np.abs(sheet.x) < 0.09] += 0.15
    sheet.values += 0.25 * sheet.inside(-0.1, 0.25, 0.28, 0.25)
    sheet.values[sheet.y < -0.8 + 0.3 * sheet.x**2] -= 0.4
    sheet.values += 0.15 * sheet.y
    if rng.random() < 0.3:
        sheet.values = 1 - sheet.values
    return sheet.gray(rng.uniform(0.01, 0.03), 2)


def hand_xray(rng: np.random.Generator) -> Slice:
    """A radiograph of a hand or a foot: five rays of bones in soft tissue."""
    sheet = _Sheet(rng, rng.uniform(0, 0.1))
    sheet.values += 0.3 * sheet.inside(0, 0.35, 0.4, 0.4)
    for x, turn in zip(np.linspace(-0.45, 0.45, 5), np.linspace(-25, 25, 5), strict=True):
        lean = np.tan(np.deg2rad(turn))
        sheet.values = np.maximum(
            sheet.values, 0.3 * sheet.inside(x + lean * 0.35, -0.35, 0.09, 0.45, 0.02, turn)
        )
        for y in (0.3, -0.05, -0.35, -0.58):
            sheet.values += 0.45 * sheet.inside(x * 0.8 - lean * y, y, 0.05, 0.14, 0.03, turn)
    return sheet.gray(0.02, 1.5)


def skull_xray(rng: np.random.Generator) -> Slice:
    """A lateral skull radiograph: one bright shadow with face and neck."""
    sheet = _Sheet(rng, rng.uniform(0, 0.15))
    sheet.values += 0.45 * sheet.inside(0.1, -0.2, 0.7, 0.58)
    sheet.values += 0.15 * (
        sheet.inside(0.1, -0.2, 0.7, 0.58) & ~sheet.inside(0.1, -0.2, 0.66, 0.54)
    )
    sheet.values += 0.3 * sheet.inside(-0.45, 0.3, 0.25, 0.35)
    sheet.values += 0.25 * sheet.inside(0.2, 0.75, 0.2, 0.4)
    sheet.values += 0.2 * sheet.inside(0.0, 0.2, 0.4, 0.08, 0.1, 12)
    sheet.values += 0.06 * sheet.texture(1, 12) * (sheet.values > 0.3)
    return sheet.gray(0.02, 2)


def mammogram(rng: np.random.Generator) -> Slice:
    """A mammogram: a breast at the edge of a black image."""
    sheet = _Sheet(rng, 0.01)
    side = rng.choice([-1, 1])
    where = sheet.fill(
        0.35, side, rng.uniform(-0.1, 0.1), rng.uniform(0.7, 1.3), rng.uniform(0.6, 0.85)
    )
    sheet.values[where] += np.abs(sheet.texture(0.2, 20))[where] * 1.2
    return sheet.gray(0.02, 1.5)


def ultrasound(rng: np.random.Generator) -> Slice:
    """A sector of speckle with dark vessels."""
    sheet = _Sheet(rng, 0.0)
    away, angle = np.hypot(sheet.x, sheet.y + 1.1), np.arctan2(sheet.x, sheet.y + 1.1)
    sector = (away < 1.95) & (away > 0.15) & (np.abs(angle) < rng.uniform(0.5, 0.8))
    tissue = np.clip(0.4 + sheet.texture(0.15, 10), 0, 1)
    for _ in range(rng.integers(1, 5)):
        where = sheet.inside(
            rng.uniform(-0.4, 0.4),
            rng.uniform(-0.4, 0.6),
            rng.uniform(0.08, 0.35),
            rng.uniform(0.08, 0.3),
            0.08,
        )
        tissue[where] *= rng.uniform(0.05, 0.5)
    speckle = rng.rayleigh(0.8, sheet.values.shape)
    sheet.values = (sector * tissue * speckle).astype(np.float32)
    return sheet.gray(0.0, 1.2)


def scintigram(rng: np.random.Generator) -> Slice:
    """Blurred spots on a black background: nuclear medicine, PET."""
    sheet = _Sheet(rng, 0.0)
    sheet.values += rng.uniform(0.05, 0.3) * sheet.inside(
        0, 0, rng.uniform(0.3, 0.7), rng.uniform(0.5, 0.9)
    )
    for _ in range(rng.integers(2, 8)):
        sheet.values += rng.uniform(0.2, 0.8) * sheet.inside(
            rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.6), *rng.uniform(0.04, 0.2, 2)
        )
    return sheet.gray(0.03, 12)


def microscopy(rng: np.random.Generator) -> Slice:
    """Cells with dark nuclei on a light background."""
    sheet = _Sheet(rng, rng.uniform(0.7, 0.95))
    for _ in range(rng.integers(15, 50)):
        x, y, radius = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.04, 0.12)
        sheet.fill(rng.uniform(0.45, 0.7), x, y, radius, radius, 0.1)
        sheet.fill(rng.uniform(0.1, 0.4), x, y, radius * 0.4, radius * 0.4, 0.1)
    return sheet.gray(0.02)


Maker = Callable[[np.random.Generator], Slice]
CT: tuple[Maker, ...] = (
    chest_ct,
    abdomen_ct,
    pelvis_ct,
    shoulders_ct,
    knee_ct,
    forearm_ct,
    foot_ct,
)
MR: tuple[Maker, ...] = (brain_mr_t1, brain_mr_t2, brain_mr_flair, body_mr)
OTHERS: tuple[Maker, ...] = (
    chest_xray,
    hand_xray,
    skull_xray,
    mammogram,
    ultrasound,
    scintigram,
    microscopy,
)
FAMILIES: dict[str, Maker] = {maker.__name__: maker for maker in (*CT, *MR, *OTHERS)}
