"""Writing that is burned into the pixels: names, numbers and dates, found by its shape and painted over."""

import numpy as np
from scipy.ndimage import find_objects, gaussian_filter, label, maximum_filter, minimum_filter
from scipy.sparse.csgraph import connected_components

from lib.radiographs.geometry import Picture

SIDE = 512  # pixels of the longer side at which it is looked for; smaller images as they are
STRIP, FINER = 0.1, 1280  # of the height, at the top and at the bottom, where small print stands: looked at more finely
STROKE = 0.012  # of the longer side: what is thinner than this may be writing
CONTRASTS = (0.25, 0.12)  # from its surroundings, of the grey scale: letters that touch, and letters on bone
NOISE = 7  # the same in median deviations of the grain, at least
GAP = 12  # heights between two parts of a line
GLYPHS = 3  # so many letters in a line are writing: a single L or R is a side marker


def text_lines(image: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return (top, left, bottom, right) of what looks like a line of writing in (h, w) in [0, 1], with a margin.

    Letters are thin patches, far brighter or darker than what surrounds them, and as high as letters are. A line is at
    least `GLYPHS` of them side by side, of about one height, in the outer parts of the image.
    """
    height, width = image.shape
    strip = max(round(STRIP * height), 1)
    found = _found(image, SIDE)
    if max(height, width) > SIDE:
        for top in (0, height - strip):
            lines = _found(image[top : top + strip], round(FINER * width / max(height, width)))
            found += [line + np.array([top, 0, top, 0]) for line in lines]
    boxes = np.clip(np.rint(_joined(found)), 0, np.tile(image.shape, 2))
    return [tuple(box) for box in boxes.astype(int).tolist()]


def _joined(lines: list[np.ndarray]) -> np.ndarray:
    """Join boxes of one line: it may be found twice, and in parts where bone lies between them."""
    boxes = np.array(lines, float).reshape(-1, 4)
    while len(boxes) > 1:
        top, left, bottom, right = boxes.T
        height = bottom - top
        lower = np.minimum(height[:, None], height)
        overlap = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
        gap = np.maximum(left[:, None], left) - np.minimum(right[:, None], right)
        _, line = connected_components((overlap > 0.5 * lower) & (gap < GAP * lower))
        joined = [boxes[line == number] for number in range(line.max() + 1)]
        joined = np.array([np.concatenate([own[:, :2].min(0), own[:, 2:].max(0)]) for own in joined])
        if len(joined) == len(boxes):
            break
        boxes = joined
    return boxes


def _found(image: np.ndarray, side: int) -> list[np.ndarray]:
    """Find lines, unrounded, in an image that is looked at with so many pixels of its longer side."""
    small = gaussian_filter(Picture(image).shrunk(min(side, max(image.shape))).image, 0.7)
    scale, side, found = np.divide(image.shape, small.shape), min(max(small.shape), SIDE), []
    for polarity in (small, 1 - small):
        stroke = max(round(STROKE * side), 3)
        above = polarity - maximum_filter(minimum_filter(polarity, stroke), stroke)  # what is wider than a stroke is 0
        sample = above[::3, ::3]
        noise = np.median(sample)
        grain = noise + NOISE * np.median(abs(sample - noise))
        for contrast in CONTRASTS:
            patches, _ = label(above > max(contrast, grain), np.ones((3, 3)))
            boxes = np.array([(y.start, x.start, y.stop, x.stop) for y, x in find_objects(patches)]).reshape(-1, 4)
            heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
            letters = (heights >= max(0.006 * side, 5)) & (heights <= 0.06 * side) & (widths <= 1.5 * heights)
            found += _lines(boxes[letters], *small.shape)
    return [line * np.tile(scale, 2) for line in found]


def _lines(letters: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """Return boxes around letters in a line with others of their height, most in the image's outer parts."""
    if not GLYPHS <= len(letters) <= 2000:  # more is grain
        return []
    heights = letters[:, 2] - letters[:, 0]
    y, x = (letters[:, 0] + letters[:, 2]) / 2, (letters[:, 1] + letters[:, 3]) / 2
    taller, lower = np.maximum(heights[:, None], heights), np.minimum(heights[:, None], heights)
    near = (abs(y[:, None] - y) < 0.5 * taller) & (abs(x[:, None] - x) < 2.5 * taller) & (lower > 0.5 * taller)
    _, line = connected_components(near)
    counts = np.bincount(line)
    outer = (abs(y / height - 0.5) > 0.3) | (abs(x / width - 0.5) > 0.3)
    boxes = []
    for number in np.flatnonzero((counts >= GLYPHS) & (np.bincount(line, outer) >= 0.5 * counts)):
        members = line == number
        margin = heights[members].max() * np.array([0.4, 3.0])  # for commas, and for letters that were not found
        top_left, bottom_right = letters[members, :2].min(0), letters[members, 2:].max(0)
        boxes.append(np.concatenate([top_left - margin, bottom_right + margin]))
    return boxes


def without_text(image: np.ndarray, lines: list[tuple[int, int, int, int]]) -> np.ndarray:
    """Return a copy in which each of its `text_lines` has the grey that surrounds it, column by column."""
    hidden = image.copy()
    for top, left, bottom, right in lines:
        rim = max((bottom - top) // 4, 2)
        above, below = hidden[max(top - rim, 0) : top, left:right], hidden[bottom : bottom + rim, left:right]
        hidden[top:bottom, left:right] = np.median(np.concatenate([above, below]), axis=0)
    return hidden
