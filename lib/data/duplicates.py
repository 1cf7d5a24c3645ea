"""Duplicates: the same radiograph twice, under the names of two patients, so that a test image would be trained on.

A patient came back, or a file was exported twice: re-encoded, windowed otherwise, labelled, turned.
"""

import io
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.fft import dctn, fft2, fftfreq, fftshift, irfft2, rfft2, rfftfreq
from scipy.ndimage import gaussian_filter, rotate, shift, zoom
from torch.nn.functional import affine_grid, grid_sample, interpolate, normalize

from lib.data.cohort import Cohort, to_pixels
from lib.data.pixels import BLOCK
from lib.run.randomness import generator

HASH_BITS, CORRELATION = 6, 0.995  # two images are one where hash and thumbnail agree at least as closely
NEAREST = 2  # other images, each way round, that an image is aligned with
# By side: from which correlation of amplitude spectra, and of aligned textures, two images are one. Those of different
# phantom patients reached 0.71 and 0.93 at 64 px, 0.71 and 0.92 at 128, 0.97 and 0.97 at 32 (up to 4,317 images).
SAME = {32: (0.98, 0.98), 64: (0.78, 0.95)}


def duplicates(a: np.ndarray, b: np.ndarray, patients_a, patients_b) -> tuple[np.ndarray, np.ndarray]:
    """Find the pairs of images (N, H, W) and (M, H, W), of different patients, that are one image: rows of a and of b.

    A pair counts, as it is, mirrored, upside down or both, where

    - perceptual hashes differ in at most 6 of 63 bits and 32 × 32 thumbnails correlate by at least 0.995, or
    - the amplitude spectra of their textures (`texture`), which shifts do not change, correlate as `SAME` demands, or
    - so do the textures, shifted by up to a tenth of the side, turned by 3° or not, scaled by 7 % or not. Only the
      `NEAREST` by spectrum are compared so. The sign does not count: an inverted image is a copy.

    The thresholds are those of phantoms of 32 px or more. Real radiographs may share more, such as a burnt-in frame.
    """
    patients_a, patients_b = np.asarray(patients_a), np.asarray(patients_b)
    same_spectrum, same_texture = SAME[min(SAME, key=lambda side: abs(side - min(a.shape[-1], 64)))]
    thumbnails_b, textures_b = _thumbnails(b, 32), texture(b)
    hashes_b, features_b = perceptual_hash(thumbnails_b), _standardised(thumbnails_b)
    spectra_b = [_standardised(_spectra(textures_b[i : i + BLOCK])) for i in range(0, len(b), BLOCK)]
    spectra_b = np.concatenate(spectra_b).T
    rows, columns = [], []
    for start in range(0, len(a), BLOCK):
        block = slice(start, start + BLOCK)
        thumbnails, textures = _thumbnails(a[block], 32), texture(a[block])
        spectra = _spectra(textures)
        others = patients_a[block, None] != patients_b
        same = np.zeros(others.shape, bool)
        for y, x in product((1, -1), repeat=2):
            view = thumbnails[:, ::y, ::x]
            bits = np.bitwise_count(perceptual_hash(view)[:, None] ^ hashes_b)
            same |= (bits <= HASH_BITS) & (_standardised(view) @ features_b.T >= CORRELATION)
        for x in (1, -1):
            alike = np.where(others, _standardised(spectra[:, :, ::x]) @ spectra_b, -1)
            column = np.argsort(-alike, axis=1)[:, :NEAREST].ravel()
            row = np.repeat(np.arange(len(textures)), len(column) // len(textures))
            one = _aligned(textures[row][:, :, ::x], textures_b[column]) >= same_texture
            same |= alike >= same_spectrum
            same[row[one], column[one]] = True
        found = np.nonzero(same & others)
        rows.append(found[0] + start)
        columns.append(found[1])
    return np.concatenate(rows), np.concatenate(columns)


def duplicate_pairs(cohort: Cohort) -> pd.DataFrame:
    """Find the pairs of images that are one: `a, b, patients`, positions with a first, and "one" patient or "two"."""
    patients = cohort.table.patient_id
    rows = [(*duplicates(cohort.pixels, cohort.pixels, patients, patients), "two")]
    for own in cohort.table.groupby("patient_id").indices.values():
        if len(own) > 1:
            pixels, ids = cohort.pixels[own], cohort.table.image_id.iloc[own]
            rows.append((*(own[found] for found in duplicates(pixels, pixels, ids, ids)), "one"))
    pairs = pd.concat([pd.DataFrame({"a": a, "b": b, "patients": whose}) for a, b, whose in rows], ignore_index=True)
    pairs[["a", "b"]] = np.sort(pairs[["a", "b"]].to_numpy(int), axis=1)
    return pairs.drop_duplicates(ignore_index=True)


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """Hash (N, 32, 32) to (N,) uint64: which of the 63 lowest frequencies but the mean exceed their median.

    Zauner 2010, *Implementation and benchmarking of perceptual image hash functions*, the DCT hash.
    """
    frequencies = dctn(thumbnails, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(thumbnails), 64)[:, 1:]
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return bits @ (np.uint64(1) << np.arange(63, dtype=np.uint64))


def texture(pixels: np.ndarray) -> np.ndarray:
    """Return the fine structure of images, (N, S, S) float32 of length 1, S at most 64; 0 of an even grey.

    It is the difference from a Gaussian mean, over its local standard deviation: brightness, contrast and gamma hardly
    matter, and bones weigh no more than noise. It is then half whitened, F/|F|^½, and band-limited: between plain and
    phase-only correlation (Ito et al. 2008, *A dental radiograph recognition system using phase-only correlation*).
    """
    textures = np.empty((len(pixels), *[min(64, pixels.shape[-1])] * 2), np.float32)
    for start in range(0, len(pixels), BLOCK):
        images = _thumbnails(pixels[start : start + BLOCK], textures.shape[-1])
        band = images - gaussian_filter(images, 3, axes=(1, 2))
        local = np.sqrt(gaussian_filter(band**2, 4, axes=(1, 2)))
        band /= local + 0.1 * band.std((1, 2), keepdims=True) + 1e-6
        side = images.shape[-1]
        window = np.sqrt(np.hanning(side + 2)[1:-1]).astype(np.float32)
        F = rfft2(band * window * window[:, None])
        F *= np.exp(-(fftfreq(side)[:, None] ** 2 + rfftfreq(side) ** 2) / (2 * 0.15**2)) / np.sqrt(abs(F) + 1e-9)
        F[:, 0, 0] = 0
        textures[start : start + BLOCK] = _standardised(irfft2(F, s=(side, side))).reshape(images.shape)
    return textures


def _spectra(textures: np.ndarray) -> np.ndarray:
    """Return |F|^½ of (N, S, S) up to K = 0.4 S, (N, K + 1, 2K + 1), standardised; a mirror reverses it in x."""
    middle, top = textures.shape[-1] // 2, int(0.4 * textures.shape[-1])
    F = np.sqrt(abs(fftshift(fft2(textures), axes=(1, 2))))
    F -= gaussian_filter(F, 3, axes=(1, 2))
    F /= np.sqrt(gaussian_filter(F**2, 6, axes=(1, 2))) + 1e-6
    return F[:, middle : middle + top + 1, middle - top : middle + top + 1]


def _aligned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (P,) the largest correlation of textures (P, S, S), without its sign, over shifts, turns and scales of a.

    Turning an image by 180° makes its Fourier transform the complex conjugate.
    """
    best, side = np.zeros(len(a), np.float32), a.shape[-1]
    near = torch.arange(-(side // 10), side // 10 + 1)
    for turn, scale in sorted(product((-3, 0, 3), (0.93, 1, 1.07)), key=lambda warp: warp != (0, 1)):
        rows = np.flatnonzero(best >= 0.75) if best.any() else np.arange(len(a))  # others are given up, to save time
        c, s = scale * np.cos(np.radians(turn)), scale * np.sin(np.radians(turn))
        affine = torch.tensor([[[c, -s, 0], [s, c, 0]]], dtype=torch.float32)
        grid = affine_grid(affine, (1, 1, side, side), align_corners=False)
        for start in range(0, len(rows), BLOCK):
            pairs = rows[start : start + BLOCK]
            A, B = torch.from_numpy(a[pairs])[:, None], torch.fft.rfft2(torch.from_numpy(b[pairs]))
            moved = grid_sample(A, grid.expand(len(A), -1, -1, -1), align_corners=False)
            F = torch.fft.rfft2(normalize(moved.flatten(1)).view(len(A), side, side))
            for cross in (F * B.conj(), F * B):
                shifts = torch.fft.irfft2(cross, s=(side, side))[:, near[:, None], near]
                best[pairs] = np.maximum(best[pairs], shifts.abs().amax((1, 2)).numpy())
    return best


def _thumbnails(pixels: np.ndarray, side: int) -> np.ndarray:
    """Average images to (N, side, side) float32."""
    small = [
        interpolate(torch.from_numpy(np.asarray(pixels[i : i + BLOCK], np.float32))[:, None], (side, side),
                    mode="bilinear", antialias=True)[:, 0].numpy()
        for i in range(0, len(pixels), BLOCK)
    ]  # fmt: skip
    return np.concatenate(small)


def _standardised(images: np.ndarray) -> np.ndarray:
    """Return (N, H · W) of mean 0 and length 1, so that products are correlations; 0 of an even grey."""
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def _labelled(image: np.ndarray) -> np.ndarray:
    image, side = image.copy(), len(image)
    image[side - side // 6 :, : side // 3] = 1
    return image


def _cropped(image: np.ndarray, share: float) -> np.ndarray:
    side = len(image)
    cut = max(round(share * side), 1)
    return zoom(image[cut:-cut, cut:-cut], side / (side - 2 * cut), order=1, mode="nearest", grid_mode=True)


def _shifted(image: np.ndarray, share: float) -> np.ndarray:
    return shift(image, (0, max(round(share * len(image)), 1)), order=0, mode="nearest")


def _turned(image: np.ndarray) -> np.ndarray:
    return rotate(image, 3, reshape=False, order=1, mode="nearest")


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {  # (H, W) in [0, 1]; clipped afterwards
    "8 bits": lambda image, rng: np.rint(image * 255) / 255,
    "brighter by 0.15": lambda image, rng: image + 0.15,
    "brightness × 1.3": lambda image, rng: image * 1.3,
    "darker, brightness × 0.6": lambda image, rng: image * 0.6,
    "contrast × 1.5 about the middle": lambda image, rng: (image - 0.5) * 1.5 + 0.5,
    "gamma 0.5": lambda image, rng: image**0.5,
    "gamma 2": lambda image, rng: image**2,
    "noise of 2 %": lambda image, rng: image + rng.normal(0, 0.02, image.shape),
    "noise of 5 %": lambda image, rng: image + rng.normal(0, 0.05, image.shape),
    "JPEG of quality 20": lambda image, rng: _jpeg(image, 20),
    "JPEG of quality 10": lambda image, rng: _jpeg(image, 10),
    "label over a corner": lambda image, rng: _labelled(image),
    "cropped by 3 % a side": lambda image, rng: _cropped(image, 0.03),
    "cropped by 8 % a side": lambda image, rng: _cropped(image, 0.08),
    "shifted by 3 %": lambda image, rng: _shifted(image, 0.03),
    "shifted by 8 %": lambda image, rng: _shifted(image, 0.08),
    "turned by 3°": lambda image, rng: _turned(image),
    "turned by 3° and cropped by 3 %": lambda image, rng: _cropped(_turned(image), 0.03),
    "turned by 180°": lambda image, rng: image[::-1, ::-1],
    "mirrored": lambda image, rng: image[:, ::-1],
    "inverted": lambda image, rng: 1 - image,
}


def duplicate_sensitivity(cohort: Cohort, seed: int, most: int = 20) -> pd.DataFrame:
    """Tell which share of changed copies, given to invented patients, `duplicates` finds: `change, found, n`.

    Found is in percent of n. At most `most` images are drawn, each of them changed in all ways of `CHANGES`.
    """
    rng = generator(seed, 5)
    rows = np.sort(rng.permutation(len(cohort))[:most])
    images = [image[0] / 2 + 0.5 for image in cohort.take(rows).images()]
    copies = [np.clip(change(image, rng), 0, 1).astype(np.float32) for change in CHANGES.values() for image in images]
    pixels = to_pixels(np.stack(copies)[:, None] * 2 - 1, cohort.pixels.dtype)
    a, b = duplicates(pixels, cohort.pixels, ["copy"] * len(pixels), cohort.table.patient_id)
    found = np.zeros(len(pixels), bool)
    found[a[b == np.tile(rows, len(CHANGES))[a]]] = True
    share = found.reshape(len(CHANGES), len(rows)).mean(1)
    return pd.DataFrame({"change": list(CHANGES), "found": 100 * share, "n": len(rows)})
