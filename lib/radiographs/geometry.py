"""Geometry: what is cut off, turned and scaled between a file and its square, and the way back.

Points are (x, y) in pixels, counted from the upper left corner: pixel (0, 0) spans from 0 to 1, its middle is at 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

EXTREME, ONE = 0.05, 0.75  # see `field_of_view`
BOTH_DARK, BOTH_BRIGHT = 0.97, 0.85
LEAST = 0.25  # of the height or width that must be left: what would lose more is not cropped
CLEAR = 1.5  # times the middling sharpness of all directions: from there on, one of them is the shaft's


@dataclass(frozen=True)
class Picture:
    """An image on its way from file to square; every step gives a new one."""

    image: np.ndarray  # (h, w) float32
    to_source: np.ndarray = field(default_factory=lambda: np.eye(3))  # (3, 3): its (x, y, 1) to the file's

    def cropped(self, top: int, left: int, bottom: int, right: int) -> Picture:
        return Picture(self.image[top:bottom, left:right], self.to_source @ _affine(x0=left, y0=top))

    def turned(self, quarters: int) -> Picture:
        """Turn by quarters, counter-clockwise."""
        to_source, (height, width) = self.to_source, self.image.shape
        for _ in range(quarters % 4):
            to_source = to_source @ np.array([[0, -1, width], [1, 0, 0], [0, 0, 1.0]])
            height, width = width, height
        return Picture(np.rot90(self.image, quarters % 4), to_source)

    def mirrored(self) -> Picture:
        """Exchange left and right."""
        return Picture(self.image[:, ::-1], self.to_source @ _affine(xx=-1, x0=self.image.shape[1]))

    def resized(self, height: int, width: int, gap: float | None = None) -> Picture:
        """Resample with a triangle filter as wide as the reduction asks for: sharper ones draw seams along cortices.

        With a `gap`, means of whole pixels are taken first, down to so many times the size: faster, hardly less exact.
        """
        image = Image.fromarray(np.ascontiguousarray(self.image))
        small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=gap)
        scale = _affine(xx=self.image.shape[1] / width, yy=self.image.shape[0] / height)
        return Picture(np.asarray(small), self.to_source @ scale)

    def shrunk(self, size: int) -> Picture:
        """Resize until the longer side has this many pixels, to be measured rather than shown."""
        return self.resized(*fitting(self.image.shape, size), gap=2)

    def rotated(self, degrees: float) -> Picture:
        """Turn counter-clockwise about the middle, in a frame that holds all of it; empty corners are black."""
        height, width = self.image.shape
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        sides = height * abs(c) + width * abs(s), width * abs(c) + height * abs(s)
        h, w = (int(np.ceil(round(side, 6))) for side in sides)
        back = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        back = _affine(x0=width / 2, y0=height / 2) @ back @ _affine(x0=-w / 2, y0=-h / 2)
        image = Image.fromarray(np.ascontiguousarray(self.image))
        image = image.transform((w, h), Image.Transform.AFFINE, back[:2].ravel(), Image.Resampling.BILINEAR)
        return Picture(np.asarray(image), self.to_source @ back)

    def padded(self, size: int) -> Picture:
        """Put it into the middle of a black square."""
        height, width = self.image.shape
        top, left = (size - height) // 2, (size - width) // 2
        square = np.zeros((size, size), np.float32)
        square[top : top + height, left : left + width] = self.image
        return Picture(square, self.to_source @ _affine(x0=-left, y0=-top))


def _affine(xx: float = 1, yy: float = 1, x0: float = 0, y0: float = 0) -> np.ndarray:
    return np.array([[xx, 0, x0], [0, yy, y0], [0, 0, 1.0]])


def moved(points, matrix: np.ndarray) -> np.ndarray:
    """Move (n, 2) points through a (3, 3) matrix; `np.linalg.inv` of it is the other way."""
    return np.asarray(points, float) @ matrix[:2, :2].T + matrix[:2, 2]


def fitting(extent, size: int) -> tuple[int, int]:
    """Return height and width, in pixels, of what has this extent and is to fit a square."""
    return tuple(max(1, round(side * size / max(extent))) for side in extent)


def field_of_view(image: np.ndarray) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right) of what is left without collimation borders and burned-in frames.

    A line is border if 75 % of it lie within 5 % of the darkest value, or of the brightest. 97 % (of a bright line
    85 %) must lie near one of the two, since a border may hold a marker or writing. Lines are taken off all four sides
    again and again, so that a white frame within a black margin goes too. Borders that are not parallel to the image
    stay. Where less than a quarter of the height or width would be left, nothing is taken off.
    """
    height, width = image.shape
    low, high = np.percentile(image[:: max(height // 500, 1), :: max(width // 500, 1)], [0.1, 99.9])
    edge = EXTREME * (high - low)
    dark, bright = image <= low + edge, image >= high - edge

    def is_border(*line: int | slice) -> bool:
        darks, brights = dark[line].mean(), bright[line].mean()
        both = darks + brights
        return (darks >= ONE and both >= BOTH_DARK) or (brights >= ONE and both >= BOTH_BRIGHT)

    top, left, bottom, right = 0, 0, height, width
    before = None
    while before != (top, left, bottom, right):
        before = top, left, bottom, right
        while bottom - top > 1 and is_border(top, slice(left, right)):
            top += 1
        while bottom - top > 1 and is_border(bottom - 1, slice(left, right)):
            bottom -= 1
        while right - left > 1 and is_border(slice(top, bottom), left):
            left += 1
        while right - left > 1 and is_border(slice(top, bottom), right - 1):
            right -= 1
    if bottom - top < LEAST * height or right - left < LEAST * width:
        return 0, 0, height, width
    return top, left, bottom, right


def tilt(image: np.ndarray) -> float:
    """Return the degrees, -45 … 45, to turn an image counter-clockwise for its shaft to stand upright.

    It is the turn after which neighbouring columns differ most in their means: then cortices and the soft tissue's
    edges are parallel to the columns. The darkest pixels do not count, so that black corners do not matter. 0 where no
    direction is clearly better than the others.
    """
    small = Picture(image).shrunk(min(128, max(image.shape)))
    low, high = np.percentile(small.image, [0.1, 99.9])
    seen = Picture((small.image > low + EXTREME * (high - low)).astype(np.float32))
    grey = Picture((small.image - low) * seen.image)

    def sharpness(degrees: float) -> float:
        weight = seen.rotated(degrees).image.sum(0)
        column = grey.rotated(degrees).image.sum(0) / np.maximum(weight, 1)
        both = np.minimum(weight[2:], weight[:-2])  # two apart, so that grain weighs less
        return float((both * (column[2:] - column[:-2]) ** 2).sum())

    coarse = np.arange(-45, 46, 3)
    scores = np.array([sharpness(degrees) for degrees in coarse])
    if scores.max() <= CLEAR * np.median(scores):
        return 0.0
    fine = coarse[scores.argmax()] + np.arange(-3, 3.1, 0.5)
    return float(fine[np.argmax([sharpness(degrees) for degrees in fine])])
