"""Decoding: one PNG, JPEG, TIFF or DICOM file to grey values in [0, 1], as its author wanted them to be seen.

A file's content says what it is, not its name. Its size is checked before anything is decoded, so that a small file
cannot unfold into one that fills the memory.
"""

import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array

MAX_BYTES = 2**30  # of a file, and of what a deflated one unfolds into; a radiograph of 16 bits has about 20 MB
MAX_PIXELS = 150_000_000  # of an image, 12,000 × 12,500; the largest detectors have 20 million
MAX_RATIO = 1000  # of the longer to the shorter side

FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")  # 2 or 8: how DICOM without a preamble begins
START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
VIEWS = {"AP": "AP", "PA": "AP", "LL": "lateral", "RL": "lateral", "LAT": "lateral", "LATERAL": "lateral"}
SIDES = {"l": "left", "left": "left", "links": "left", "r": "right", "right": "right", "rechts": "right"}


class Unusable(ValueError):
    """An image that cannot be used. Its message tells nothing that only the file's tags would tell."""


class Radiograph(NamedTuple):
    """One image as read from its file."""

    image: np.ndarray  # (h, w) float32 in [0, 1], bone bright on a dark background
    bits: int  # stored per pixel and channel
    spacing: tuple[float, float] = (1.0, 1.0)  # height and width of one pixel; only their ratio has a meaning
    view: str = ""  # from DICOM's tags: "AP" (PA too) or "lateral", empty where they do not say
    side: str = ""  # "left" or "right", likewise
    quarters: int = 0  # quarter turns counter-clockwise that bring the head up, from DICOM's tags
    notes: tuple[str, ...] = ()  # what a reader should know: "the first of 3 frames"


def read_image(path: str | Path) -> Radiograph:
    """Read one PNG, JPEG, TIFF or DICOM file; of several frames or pages the first.

    DICOM values pass the file's modality and VOI transforms, and pixel padding becomes black. Other files span the full
    range of their bit depth. Colours become luminance (ITU-R BT.601); grey stays grey. Raises Unusable with the reason,
    and without the path, where the file holds no usable image.
    """
    path = Path(path)
    try:
        if not (size := path.stat().st_size):
            raise Unusable("the file is empty (0 bytes)")
        if size > MAX_BYTES:
            raise Unusable(f"the file has {size / 2**20:,.0f} MiB, more than the {MAX_BYTES / 2**20:,.0f} allowed")
        ds = read_dataset(path)
        radiograph = _read_picture(path) if ds is None else _read_dicom(ds)
        if not np.isfinite(radiograph.image).all():
            raise Unusable("pixels that are no numbers, after its tags' transforms")
        if np.ptp(radiograph.image) == 0:
            raise Unusable("every pixel has the same value")
        return radiograph
    except UnidentifiedImageError:
        raise Unusable("not a PNG, JPEG, TIFF or DICOM image, or of a rare kind that Pillow cannot read") from None
    except Exception as error:  # decoders raise errors of all kinds
        raise Unusable(f"unreadable image: {reason(error, path)}") from None


def reason(error: Exception, path: Path) -> str:
    """Return what an error says, on one line, without anything that the file itself says.

    Left out are the file's name, quoted values, and numbers of five digits or more. Keywords of DICOM stay.
    """
    if isinstance(error, Unusable):
        return str(error)
    text = " ".join(str(error).split()).replace(str(path), "the file").replace(path.name, "the file")
    text = re.sub(r"(['\"])(.*?)\1", lambda quoted: quoted[2] if tag_for_keyword(quoted[2]) else "…", text)
    return re.sub(r"\d{5,}", "…", text) or type(error).__name__


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
        notes = ("the first of several pages",) if getattr(picture, "is_animated", False) else ()
        picture = ImageOps.exif_transpose(picture)
        # Pillow's convert("L") would cut 16 bits off at 255, so they go to numpy as they are.
        image = np.asarray(picture if bits > 8 else picture.convert("L"), np.float32) / (2**bits - 1)
    if bits > 8 and tags.get(262) == 0:  # WhiteIsZero: Pillow inverts it at 8 bits, not at 16
        image = 1 - image
    return Radiograph(image, bits, notes=notes)


# DICOM ---------------------------------------------------------------------------------------------------------------


def _read_dicom(ds: pydicom.Dataset) -> Radiograph:
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
            if (windows := len(_values(ds, "WindowCenter"))) > 1:
                notes.append(f"the first of {windows} windows")
    view = VIEWS.get(str(ds.get("ViewPosition") or "").upper(), "")
    side = SIDES.get(str(ds.get("ImageLaterality") or ds.get("Laterality") or "").lower(), "")
    image = image.astype(np.float32, copy=False)
    return Radiograph(image, bits, _pixel_spacing(ds), view, side, _quarters(ds), tuple(notes))


def read_dataset(path: str | Path, pixels: bool = True) -> pydicom.Dataset | None:
    """Read a DICOM file's tags, with or without its pixels; None where it is no DICOM file.

    Files without a preamble, or without file meta information, are read too. Raises Unusable where a deflated file
    would unfold into more than `MAX_BYTES`. A broken file raises pydicom's own errors.
    """
    with open(path, "rb") as file:
        head = file.read(132)
    preamble = head[128:] == b"DICM"
    if not preamble and head[:2] not in FIRST_GROUPS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if preamble:
            _check_deflated(path)
        ds = pydicom.dcmread(path, force=not preamble, stop_before_pixels=not pixels)
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return ds


def _check_deflated(path: Path) -> None:
    """Raise Unusable where a deflated file would unfold into more than `MAX_BYTES`: inflated in pieces, none kept."""
    with open(path, "rb") as file:
        file.seek(132)
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
        if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
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
    """Return the values that a grey image can store, (2^bits,), ascending, and what each shows as: float32 in [0, 1].

    Modality LUT or rescale, then VOI LUT or window (the first of several), then MONOCHROME1 inverted. Without VOI, the
    full range of the stored bits. Pixel padding is black. DICOM PS3.3 C.7.5.1.1.2, C.11.1, C.11.2.
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
    black, white = (values.min(), values.max()) if highest is None else (0, highest)
    if not black < white:
        raise Unusable("a modality transform that makes all values one")

    center, width = (next(map(float, _values(ds, keyword)), None) for keyword in ("WindowCenter", "WindowWidth"))
    if ds.get("VOILUTSequence"):
        first = ds.VOILUTSequence[0].LUTDescriptor[1]
        top = _widen(ds.VOILUTSequence[0])
        shown = apply_voi(np.rint(np.clip(values, first, first + 65535)).astype(np.int32), ds) / top
    elif center is not None and width is not None:
        shown = window(values, center, width, (ds.get("VOILUTFunction") or "LINEAR").upper())
    else:
        shown = (values - black) / (white - black)
    shown = np.clip(shown, 0, 1)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    if (padding := ds.get("PixelPaddingValue")) is not None:
        low, high = sorted(int(end) for end in (padding, ds.get("PixelPaddingRangeLimit", padding)))
        shown = np.where((stored >= low) & (stored <= high), 0, shown)
    return stored, shown.astype(np.float32)


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Map values to [0, 1] by a LINEAR, LINEAR_EXACT or SIGMOID window (DICOM PS3.3 C.11.2.1.2, C.11.2.1.3)."""
    if not (np.isfinite([center, width]).all() and width > 0) or (width < 1 and function == "LINEAR"):
        raise Unusable(f"its window has the centre {center:g} and the width {width:g}")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)  # a width of 1 is a step
    return np.clip((values - center) / width + 0.5, 0, 1)


def _widen(item: pydicom.Dataset) -> int:
    """Declare a lookup table 16 bits deep, and return the highest value that it had.

    pydicom computes a table's *indices* in its output depth: those of a table with 8-bit output would wrap at 256.
    """
    entries, first, depth = item.LUTDescriptor
    item.LUTDescriptor = [entries, first, 16]
    return 2**depth - 1


def _values(ds: pydicom.Dataset, keyword: str) -> list:
    """Return the values of a tag: none, one or several."""
    value = ds.get(keyword)
    if isinstance(value, pydicom.multival.MultiValue):
        return list(value)
    return [] if value is None else [value]


def _pixel_spacing(ds: pydicom.Dataset) -> tuple[float, float]:
    """Return height and width of a pixel: at the patient, else at the detector, else their ratio, else square."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        if len(spacing := _values(ds, keyword)) == 2:
            height, width = map(float, spacing)
            if 0 < height < np.inf and 0 < width < np.inf:
                return height, width
    return 1.0, 1.0


def _quarters(ds: pydicom.Dataset) -> int:
    """Return the turns that Patient Orientation asks for: which way do the head (H) and the feet (F) lie?"""
    directions = _values(ds, "PatientOrientation")
    right, down = (str(direction)[:1] for direction in directions) if len(directions) == 2 else ("", "")
    return {"F": 0, "H": 2}.get(down, {"F": 3, "H": 1}.get(right, 0))
