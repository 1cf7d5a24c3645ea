"""Decoding: one PNG, JPEG, TIFF or DICOM file to grey values in [0, 1], as whoever made it wanted them to be seen.

What a file is, its content says, not its name. Its size is checked against `Limits` before anything is decoded, so that
a small file cannot unfold into one that fills the memory.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

MAX_BYTES = 2**30  # of a file, and of what a deflated one unfolds into; a radiograph of 16 bits has about 20 MB
MAX_PIXELS = 150_000_000  # of an image, 12,000 × 12,500; the largest detectors have 20 million
MAX_RATIO = 1000  # of the longer to the shorter side

START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
VIEWS = {"AP": "AP", "PA": "AP", "LL": "lateral", "RL": "lateral", "LAT": "lateral", "LATERAL": "lateral"}
SIDES = {"l": "left", "left": "left", "links": "left", "r": "right", "right": "right", "rechts": "right"}


class Unusable(ValueError):
    """An image that cannot be used; the message says nothing that only the file's tags would tell."""


class Radiograph(NamedTuple):
    """One image as read from its file."""

    image: np.ndarray  # (h, w) float32 in [0, 1], bone bright on a dark background
    bits: int  # stored per pixel and channel
    spacing: tuple[float, float] = (1.0, 1.0)  # height and width of one pixel; only their ratio has a meaning
    view: str = ""  # of DICOM's tags: "AP" (PA too) or "lateral", empty where they do not say
    side: str = ""  # "left" or "right", likewise
    quarters: int = 0  # quarter turns counter-clockwise that bring the patient's head up, where DICOM's tags say so
    notes: tuple[str, ...] = ()  # what was done that a reader should know: "the first of 3 frames"


def read_image(path: str | Path) -> Radiograph:
    """Decode one PNG, JPEG, TIFF or DICOM file; of several frames or pages the first.

    DICOM values pass the modality and VOI transforms of the file, and pixel padding becomes black; other files span the
    full range of their bit depth. Colours become luminance (ITU-R BT.601; grey stays grey).

    Raises
    ------
    Unusable
        With the reason, and without the path, where the file holds no usable image.
    """
    path = Path(path)
    try:
        if not (size := path.stat().st_size):
            raise Unusable("the file is empty (0 bytes)")
        if size > MAX_BYTES:
            raise Unusable(f"the file has {size / 2**20:,.0f} MiB, more than the {MAX_BYTES / 2**20:,.0f} allowed")
        with open(path, "rb") as file:
            head = file.read(132)
        if not is_dicom(head):
            return _not_empty(_read_picture(path))
        return read_dicom(read_dataset(path, head))
    except UnidentifiedImageError:
        raise Unusable("not a PNG, JPEG, TIFF or DICOM image, or of a rare kind that Pillow cannot read") from None
    except Exception as error:  # decoders raise of all kinds
        raise Unusable(f"unreadable image: {reason(error, path)}") from None


def reason(error: Exception, path: Path) -> str:
    """What was complained of, on one line; of a decoder's words without what the file itself says: its name, quoted
    values, and numbers of five digits or more. Keywords of DICOM stay."""
    if isinstance(error, Unusable):
        return str(error)
    text = " ".join(str(error).split()).replace(str(path), "the file").replace(path.name, "the file")
    text = re.sub(r"(['\"])(.*?)\1", lambda quoted: quoted[2] if tag_for_keyword(quoted[2]) else "…", text)
    return re.sub(r"\d{5,}", "…", text) or type(error).__name__


def _not_empty(radiograph: Radiograph) -> Radiograph:
    if not np.isfinite(radiograph.image).all():
        raise Unusable("pixels that are no numbers, after its tags' transforms")
    if np.ptp(radiograph.image) == 0:
        raise Unusable("every pixel has the same value")
    return radiograph


def _check_size(height: int, width: int) -> None:
    """Raise Unusable where an image is too large, or too long and thin, to be a radiograph."""
    if min(height, width) < 1:
        raise Unusable(f"an image of {height} × {width} pixels")
    if height * width > MAX_PIXELS:
        raise Unusable(f"{height} × {width} pixels are more than the {MAX_PIXELS:,} allowed")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise Unusable(f"{height} × {width} pixels: one side is more than {MAX_RATIO} times the other")


# Pictures ------------------------------------------------------------------------------------------------------------


def _read_picture(path: Path) -> Radiograph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` is stricter
        picture = Image.open(path, formats=("PNG", "JPEG", "TIFF"))
    with picture:
        _check_size(picture.height, picture.width)
        tags = getattr(picture, "tag_v2", {})
        bits = tags.get(258, (16,))[0] if picture.mode.startswith("I;16") else 8
        if picture.mode in ("I", "F"):
            raise Unusable("signed, 32-bit or floating-point pixels have no white level: save it with 8 or 16 bits")
        pages = _more_pages(picture)
        picture = ImageOps.exif_transpose(picture)
        # Pillow's convert("L") would cut 16 bits off at 255, so they go to numpy as they are.
        image = np.asarray(picture if bits > 8 else picture.convert("L"), np.float32) / (2**bits - 1)
    if bits > 8 and tags.get(262) == 0:  # WhiteIsZero: Pillow inverts it at 8 bits, not at 16
        image = 1 - image
    return Radiograph(image, bits, notes=("the first of several pages",) if pages else ())


def _more_pages(picture: Image.Image) -> bool:
    """Whether there is a second one; to count them all, Pillow would read the file as often as it has pages."""
    try:
        picture.seek(1)
    except EOFError:
        return False
    picture.seek(0)
    return True


# DICOM ---------------------------------------------------------------------------------------------------------------


def is_dicom(head: bytes) -> bool:
    """By the letters behind the preamble, or without one, by a first element of group 2 or 8 in either byte order."""
    return head[128:132] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def read_dicom(ds: pydicom.Dataset) -> Radiograph:
    """The image of a dataset; Unusable, or an error of its decoder, where it holds none that can be used."""
    with warnings.catch_warnings():  # pydicom's warnings quote tags
        warnings.simplefilter("ignore")
        notes = [] if ds.preamble else ["DICOM without a preamble"]
        if "PixelData" not in ds:
            raise Unusable("a DICOM file without an image")
        _check_size(ds.Rows, ds.Columns)
        if str(ds.get("BurnedInAnnotation")).upper() == "YES":
            notes.append("DICOM says that something identifying is burned into the pixels")
        if (frames := int(ds.get("NumberOfFrames") or 1)) > 1:
            notes.append(f"the first of {frames} frames")
        if ds.file_meta.TransferSyntaxUID.is_compressed:
            _check_codestream(ds)
        left = int(ds.get("HighBit") or ds.BitsStored - 1) + 1 - ds.BitsStored
        pixels = pixel_array(ds, index=0, correct_unused_bits=not left)
        if ds.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, ds)  # (h, w, 3)
        if pixels.ndim == 3:
            bits = pixels.dtype.itemsize * 8
            image = pixels[..., :3] @ (np.array([0.299, 0.587, 0.114], np.float32) / (2**bits - 1))
        else:
            bits = ds.BitsStored
            if left > 0:  # old files have bits to spare on the right
                pixels = pixels >> left
            stored, shown = presentation(ds)
            places = pixels if stored[0] == 0 else pixels.astype(np.int32) - stored[0]
            image = shown.take(places, mode="clip")
            if isinstance(ds.get("WindowCenter"), pydicom.multival.MultiValue) and len(ds.WindowCenter) > 1:
                notes.append(f"the first of {len(ds.WindowCenter)} windows")
    image = image.astype(np.float32, copy=False)
    return _not_empty(Radiograph(image, bits, _pixel_spacing(ds), *_view_and_side(ds), _quarters(ds), tuple(notes)))


def read_dataset(path: str | Path, head: bytes, pixels: bool = True) -> pydicom.Dataset:
    """A DICOM file's dataset; one without a preamble, or without file meta information, is read too.

    Parameters
    ----------
    head : its first 132 bytes
    pixels : whether what follows the tags is read too

    Raises
    ------
    Unusable
        Where a deflated file would unfold into more than `MAX_BYTES`; pydicom's own errors where it is no DICOM file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if head[128:132] == b"DICM":
            _check_deflated(path)
        ds = pydicom.dcmread(path, force=head[128:132] != b"DICM", stop_before_pixels=not pixels)
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return ds


def _check_deflated(path: Path) -> None:
    """Raise Unusable where a deflated file would unfold into more than `MAX_BYTES`: inflated in pieces, none kept."""
    with open(path, "rb") as file:
        file.seek(132)
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not inflate.eof and (piece := inflate.unconsumed_tail or file.read(2**16)):
            total += len(inflate.decompress(piece, 2**24))
            if total > MAX_BYTES:
                raise Unusable(f"a deflated file that unfolds into more than {MAX_BYTES / 2**20:,.0f} MiB")


def _check_codestream(ds: pydicom.Dataset) -> None:
    """Raise Unusable where the compressed image itself is too large, whatever Rows and Columns say."""
    data = get_frame(ds.PixelData, 0, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    if (at := data.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0:  # JPEG 2000: SIZ
        width, height, left, top = struct.unpack(">4I", data[at + 8 : at + 24])
        _check_size(height - top, width - left)
    elif data[:2] == b"\xff\xd8":  # JPEG and JPEG-LS: marker after marker until a start of frame
        at = 2
        while at + 9 < len(data) and data[at] == 0xFF:
            if data[at + 1] in START_OF_FRAME:
                _check_size(*struct.unpack(">2H", data[at + 5 : at + 9]))
                return
            at += 2 + int.from_bytes(data[at + 2 : at + 4])


def presentation(ds: pydicom.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """What each stored value of a grey image is shown as: one table, since no step looks at a pixel's neighbours.

    Modality LUT or rescale, then VOI LUT or window (the first of several), then MONOCHROME1 inverted. Without VOI, the
    full range of the stored bits. Pixel padding is black. DICOM PS3.3 C.7.5.1.1.2, C.11.1, C.11.2.

    Returns
    -------
    stored : (2^bits,) the values that can be stored, ascending
    shown : (2^bits,) float32 in [0, 1]
    """
    if not 1 <= ds.BitsStored <= 16:
        raise Unusable(f"{ds.BitsStored} bits stored per pixel: 1 to 16 can be read")
    for keyword, neutral in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
        if keyword in ds and ds.get(keyword) is None:  # there, and empty
            setattr(ds, keyword, neutral)
    lowest = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
    stored = np.arange(lowest, lowest + 2**ds.BitsStored, dtype=np.int32)
    highest = _widen(ds.ModalityLUTSequence[0]) if ds.get("ModalityLUTSequence") else None
    values = apply_modality_lut(stored, ds)
    extremes = (values.min(), values.max()) if highest is None else (0, highest)
    if not extremes[0] < extremes[1]:
        raise Unusable("a modality transform that makes all values one")

    center, width = _first(ds.get("WindowCenter")), _first(ds.get("WindowWidth"))
    if ds.get("VOILUTSequence"):
        first = ds.VOILUTSequence[0].LUTDescriptor[1]
        top = _widen(ds.VOILUTSequence[0])
        shown = apply_voi(np.rint(np.clip(values, first, first + 65535)).astype(np.int32), ds) / top
    elif center is not None and width is not None:
        shown = window(values, center, width, (ds.get("VOILUTFunction") or "LINEAR").upper())
    else:
        shown = (values - extremes[0]) / (extremes[1] - extremes[0])
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return stored, np.where(_is_padding(stored, ds), 0, np.clip(shown, 0, 1)).astype(np.float32)


def _is_padding(stored: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    """Which stored values say that the detector saw nothing there; none where the file does not name any."""
    value = ds.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(stored), bool)
    limits = sorted(int(v) for v in (value, ds.get("PixelPaddingRangeLimit", value)))
    return (stored >= limits[0]) & (stored <= limits[1])


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Values to [0, 1] by a LINEAR, LINEAR_EXACT or SIGMOID window: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if not (np.isfinite([center, width]).all() and width > 0) or (width < 1 and function == "LINEAR"):
        raise Unusable(f"its window has the centre {center:g} and the width {width:g}")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)  # a width of 1 is a step
    return np.clip((values - center) / width + 0.5, 0, 1)


def _widen(item: pydicom.Dataset) -> int:
    """The highest value of a lookup table, which is then declared 16 bits deep: pydicom computes the table's *indices*
    in its output depth, so that those of a table with 8-bit output would wrap at 256.
    """
    entries, first, depth = item.LUTDescriptor
    item.LUTDescriptor = [entries, first, 16]
    return 2**depth - 1


def _first(value) -> float | None:
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    return None if value is None else float(value)


def _pixel_spacing(ds: pydicom.Dataset) -> tuple[float, float]:
    """Height and width of a pixel: at the patient, else at the detector, else their bare ratio, else square."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        spacing = ds.get(keyword)
        if isinstance(spacing, pydicom.multival.MultiValue) and len(spacing) == 2:
            height, width = map(float, spacing)
            if 0 < height < np.inf and 0 < width < np.inf:
                return height, width
    return 1.0, 1.0


def _view_and_side(ds: pydicom.Dataset) -> tuple[str, str]:
    """By View Position and (Image) Laterality; empty where a tag is missing or says something else."""
    side = ds.get("ImageLaterality") or ds.get("Laterality") or ""
    return VIEWS.get(str(ds.get("ViewPosition") or "").upper(), ""), SIDES.get(str(side).lower(), "")


def _quarters(ds: pydicom.Dataset) -> int:
    """By Patient Orientation, the directions to the right and downwards: where among them is the head, or the feet?"""
    right, down = [*map(str, ds.get("PatientOrientation") or ()), "", ""][:2]
    turns = {"F": 3, "H": 1}.get(right[:1], 0)  # to the right
    return {"F": 0, "H": 2}.get(down[:1], turns)
