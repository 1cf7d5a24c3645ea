"""Radiographs of every kind that the tests write themselves, and those that pydicom ships."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pydicom
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import RAMP, RAMP8, RAMP16, SIDE, write_dicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from benchmarks import fuzz_radiographs
from lib.data.cohort import COLUMNS, CROP, MEASURES, TO_SOURCE
from lib.radiographs import decoding as files
from lib.radiographs import preparing
from lib.radiographs.decoding import Radiograph, read_image, window
from lib.radiographs.geometry import moved
from lib.radiographs.preparing import Preparation, prepare
from lib.radiographs.table import RadiographsError, flow, read_radiographs, steps
from lib.run.files import ROOT


def write_csv(folder, rows, name="mine.csv", sep=",", encoding="utf-8"):
    pd.DataFrame(rows).to_csv(folder / name, index=False, sep=sep, encoding=encoding)
    return folder / name


def row(path, patient="p1", label="AFF", **more):
    return {"path": path, "patient_id": patient, "label": label, **more}


@pytest.fixture
def folder(tmp_path):
    """Six good images in `images/`."""
    (tmp_path / "images").mkdir()
    for k in range(6):
        noise = np.random.default_rng(k).integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"images/{k}.png")
    return tmp_path


def six(**more):
    """Rows for the six images, of three patients."""
    patients, labels = ["p1", "p1", "p2", "p2", "p3", "p3"], ["AFF", "AFF", "NFF", "NFF", "NFF", "NFF"]
    rows = [row(f"images/{k}.png", patients[k], labels[k]) for k in range(6)]
    return [r | {name: values[k] for name, values in more.items()} for k, r in enumerate(rows)]


# Pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_8_bits_arrive_exactly(tmp_path, suffix):
    Image.fromarray(RAMP8).save(tmp_path / f"a.{suffix}")
    image, bits, *_ = read_image(tmp_path / f"a.{suffix}")
    assert bits == 8 and image.dtype == np.float32
    assert np.array_equal(np.rint(image * 255), RAMP8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_never_saturate(tmp_path, suffix):
    Image.fromarray(RAMP16).save(tmp_path / f"a.{suffix}")
    cohort = read_radiographs(write_csv(tmp_path, [row(f"a.{suffix}")]), SIDE)
    assert cohort.pixels.dtype == np.uint16
    assert np.abs(cohort.pixels[0].astype(int) - RAMP16).max() <= 1


def test_jpeg_and_its_orientation(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (40, 1))  # (h, w) = (40, 80), brighter to the right
    picture = Image.fromarray(smooth)
    picture.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").image * 255 - smooth).max() < 6
    exif = picture.getexif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise: right becomes bottom
    picture.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    turned = read_image(tmp_path / "turned.jpg").image
    assert turned.shape == (80, 40) and turned[-1].mean() > 0.9 > 0.1 > turned[0].mean()


@pytest.mark.parametrize("stored", [RAMP8, RAMP16])
@pytest.mark.parametrize(("photometric", "byteorder"), [("minisblack", ">"), ("minisblack", "<"), ("miniswhite", "<")])
def test_tiff_by_another_writer(tmp_path, stored, photometric, byteorder):
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, byteorder=byteorder)
    expected = stored / np.iinfo(stored.dtype).max
    expected = expected if photometric == "minisblack" else 1 - expected
    assert np.allclose(read_image(tmp_path / "a.tif").image, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_copies_of_grey_become_that_grey(tmp_path, mode):
    stored = (RAMP8 > 127) * np.uint8(255) if mode == "1" else RAMP8
    grey = Image.fromarray(stored)
    if mode == "P":
        grey.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    elif mode != "LA":
        grey = grey.convert("RGB")
    (grey if mode == "P" else grey.convert(mode)).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    assert np.array_equal(np.rint(read_image(tmp_path / "a.png").image * 255), stored)


def test_colours_become_their_luminance(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    write_dicom(tmp_path / "a.dcm", colours, 8, "RGB")
    for name in ("a.png", "a.dcm"):
        assert np.allclose(read_image(tmp_path / name).image, [[0.299, 0.587, 0.114, 1]], atol=1 / 255)


# DICOM ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("compress", [None, RLELossless])
def test_dicom_spans_its_stored_bits(tmp_path, bits, photometric, compress):
    stored = np.rint(RAMP * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    path = write_dicom(tmp_path / "a", stored, bits, photometric, compress)  # no suffix: the content decides
    image, read_bits, *_ = read_image(path)
    expected = stored / (2**bits - 1)
    assert read_bits == bits
    assert np.allclose(image, expected if photometric == "MONOCHROME2" else 1 - expected, atol=1e-6)


def test_dicom_signed(tmp_path):
    stored = np.rint(RAMP * 4095 - 2048).astype(np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored, 12)
    assert np.allclose(read_image(path).image, (stored + 2048) / 4095, atol=1e-6)


def test_dicom_ignores_what_stands_in_unused_bits(tmp_path):
    stored = np.rint(RAMP * 4095).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored | 0x8000, 12)
    assert np.allclose(read_image(path).image, stored / 4095, atol=1e-6)


def test_dicom_window_applies_to_rescaled_values(tmp_path):
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = write_dicom(
        tmp_path / "a.dcm", stored, 12, "MONOCHROME1",
        RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[1000, 5], WindowWidth=[1001, 7],
    )  # fmt: skip
    image = read_image(path).image.ravel()
    # LINEAR: black up to c - 0.5 - (w - 1)/2 = 499.5, white from 1499.5 on; stored = (value + 1000)/2; then inverted.
    assert image[749] == 1 and image[750] < 1 and image[1249] > 0 and image[1250] == 0
    assert image[1000] == pytest.approx(1 - (1000 - 999.5) / 1000 - 0.5, abs=1e-6)


@pytest.mark.parametrize("slope", [0.5, -3])
def test_dicom_rescale_alone_keeps_the_full_range(tmp_path, slope):
    stored = np.rint(RAMP * 1023).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, 10, RescaleSlope=slope, RescaleIntercept=7)
    expected = stored / 1023
    assert np.allclose(read_image(path).image, expected if slope > 0 else 1 - expected, atol=1e-6)


def lookup_table(entries, first, depth, data):
    item = pydicom.Dataset()
    item.LUTDescriptor = [entries, first, depth]
    item.LUTData = data
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


@pytest.mark.parametrize("depth", [8, 12])
@pytest.mark.parametrize("module", ["VOILUTSequence", "ModalityLUTSequence"])
def test_dicom_lookup_tables(tmp_path, module, depth):
    top = 2**depth - 1
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    curve = np.rint(np.linspace(0, 1, 3000) ** 2 * top).astype(int)
    item = lookup_table(3000, 500, depth, curve.tolist())
    image = read_image(write_dicom(tmp_path / "a.dcm", stored, 12, **{module: [item]})).image
    expected = curve[np.clip(np.arange(4096) - 500, 0, 2999)] / top  # below and above: the first and last entry
    assert np.allclose(image.ravel(), expected, atol=1e-6)


@settings(deadline=None)
@given(
    center=st.floats(-500, 5000),
    width=st.floats(1.5, 5000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_window_agrees_with_pydicom(center, width, function):
    values = np.arange(-200, 4300, 37)
    ds = pydicom.Dataset()
    ds.PhotometricInterpretation, ds.PixelRepresentation, ds.BitsStored = "MONOCHROME2", 0, 12
    ds.add_new("VOILUTFunction", "CS", function)
    ds.add_new("WindowCenter", "FD", center)
    ds.add_new("WindowWidth", "FD", width)
    with np.errstate(over="ignore"):
        assert np.allclose(window(values, center, width, function), apply_windowing(values, ds) / 4095, atol=1e-6)


@pytest.mark.parametrize(
    "tags", [{"PixelSpacing": [0.2, 0.1]}, {"ImagerPixelSpacing": [2, 1]}, {"PixelAspectRatio": [2, 1]}]
)
def test_dicom_pixels_that_are_not_square(tmp_path, tags):
    write_dicom(tmp_path / "a.dcm", RAMP8[:32], 8, **tags)  # 32 × 64 pixels, each twice as tall as wide: a square
    cohort = read_radiographs(write_csv(tmp_path, [row("a.dcm")]), SIDE)
    expected = np.repeat(RAMP8[:32], 2, axis=0)
    assert np.abs(cohort.pixels[0].astype(int) - expected).max() <= 2  # no bars


def test_nothing_of_a_dicom_file_is_carried_on(tmp_path):
    write_dicom(tmp_path / "Jane_Doe.dcm", RAMP8, 8)
    cohort = read_radiographs(write_csv(tmp_path, [row("Jane_Doe.dcm", name="Jane Doe")]), SIDE)
    assert list(cohort.table) == [*COLUMNS, *CROP, *TO_SOURCE, *MEASURES]
    assert all(pd.api.types.is_numeric_dtype(cohort.table[name]) for name in (*CROP, *TO_SOURCE, *MEASURES))
    assert not cohort.table.astype(str).apply(lambda c: c.str.contains("Doe|1900|dcm")).any(axis=None)


SHIPPED = {  # compressed file: the same image uncompressed, or None
    "MR_small_RLE.dcm": "MR_small.dcm",
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "MR_small_jpeg_ls_lossless.dcm": "MR_small.dcm",
    "MR_small_bigendian.dcm": "MR_small.dcm",
    "MR_small_implicit.dcm": "MR_small.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm": "SC_ybr_full_422_uncompressed.dcm",
    "SC_rgb_rle.dcm": "SC_ybr_full_422_uncompressed.dcm",
    "SC_rgb_rle_16bit_2frame.dcm": "SC_rgb_rle.dcm",
    "SC_rgb_jpeg_gdcm.dcm": "SC_rgb_rle.dcm",
    "693_J2KI.dcm": None,
    "JPGExtended.dcm": None,
    "JPEGLSNearLossless_16.dcm": None,
    "image_dfl.dcm": None,
    "examples_palette.dcm": None,
    "examples_ybr_color.dcm": None,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_files_of_other_writers(name):
    def shipped(name):
        path = get_testdata_file(name, download=False)
        return path or pytest.skip(f"pydicom does not ship {name}")

    image = read_image(shipped(name)).image
    ds = pydicom.dcmread(shipped(name), stop_before_pixels=True)
    assert image.shape == (ds.Rows, ds.Columns)
    assert 0 <= image.min() < image.max() <= 1
    if SHIPPED[name]:
        assert np.abs(image - read_image(shipped(SHIPPED[name])).image).max() < 0.05


def without_preamble(path, syntax=None):
    """The same file as software of the eighties wrote it: no preamble, no file meta information."""
    ds = pydicom.dcmread(path)
    syntax = syntax or ds.file_meta.TransferSyntaxUID
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    del ds.file_meta
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    pydicom.filewriter.write_dataset(buffer, ds)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_dicom_without_a_preamble(tmp_path, syntax):
    expected = read_image(write_dicom(tmp_path / "a.dcm", RAMP16, 16)).image
    found = read_image(without_preamble(tmp_path / "a.dcm", syntax))
    np.testing.assert_array_equal(found.image, expected)
    assert found.notes == ("DICOM without a preamble",)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_pixel_padding_is_black_in_either_polarity(tmp_path, photometric):
    stored = np.clip(RAMP16 >> 4, 100, None)
    stored[:20], stored[20:22] = 0, 7
    found = read_image(write_dicom(tmp_path / "a.dcm", stored, 12, photometric, PixelPaddingValue=0)).image
    plain = read_image(write_dicom(tmp_path / "b.dcm", stored, 12, photometric)).image
    assert (found[:20] == 0).all()
    np.testing.assert_array_equal(found[20:], plain[20:])
    both = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 10}
    ranged = read_image(write_dicom(tmp_path / "c.dcm", stored, 12, photometric, **both)).image
    assert (ranged[:22] == 0).all() and (ranged[22:] == plain[22:]).all()


def test_view_and_side_come_from_tags_where_the_table_has_none(tmp_path):
    write_dicom(tmp_path / "a.dcm", RAMP8, 8, ViewPosition="AP", ImageLaterality="L")
    write_dicom(tmp_path / "b.dcm", RAMP8.T.copy(), 8, ViewPosition="LL", Laterality="R")
    write_dicom(tmp_path / "c.dcm", RAMP8[::-1].copy(), 8, ViewPosition="OBLIQUE")
    rows = [row(f"{name}.dcm", side=side) for name, side in (("a", ""), ("b", "left"), ("c", ""))]
    for _ in range(2):  # the second time from the cache
        table = read_radiographs(write_csv(tmp_path, rows), SIDE, cache=tmp_path / "cache").table
        assert list(table["view"]) == ["AP", "lateral", "unknown"]
        assert list(table.side) == ["left", "left", "unknown"]


def test_what_was_left_out_is_said(tmp_path, capsys):
    frames = np.stack([RAMP8, RAMP8.T, RAMP8])
    write_dicom(tmp_path / "a.dcm", RAMP8, 8, NumberOfFrames=3, PixelData=frames.tobytes())
    write_dicom(tmp_path / "b.dcm", RAMP16, 16, WindowCenter=[100, 3000], WindowWidth=[50, 4000])
    Image.fromarray(RAMP8).save(tmp_path / "c.tif", save_all=True, append_images=[Image.fromarray(RAMP8.T.copy())])
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").image, (RAMP8 / np.float32(255)).astype(np.float32))
    csv = write_csv(tmp_path, [row(f"{name}") for name in ("a.dcm", "b.dcm", "c.tif")])
    for _ in range(2):  # the second time from the cache
        read_radiographs(csv, SIDE, cache=tmp_path / "cache")
        said = capsys.readouterr().out
        for note in ("the first of 3 frames", "the first of 2 windows", "the first of several pages"):
            assert f"1 of 3 files: {note}" in said


# Hostile files --------------------------------------------------------------------------------------------------------


def claiming_png(width, height):
    """A PNG that claims a size, with a single byte of image behind it."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (13_000, 13_000, "are more than the 150,000,000 allowed"),
        (2**20, 2**20, "exceeds limit"),
        (100_000, 10, "one side is more than 1000 times the other"),
    ],
)
def test_giant_pictures_are_refused_before_they_are_decoded(tmp_path, width, height, reason):
    (tmp_path / "a.png").write_bytes(claiming_png(width, height))
    with pytest.raises(ValueError, match=reason):
        read_image(tmp_path / "a.png")


def test_giant_dicom_is_refused_before_it_is_decoded(tmp_path):
    with pytest.raises(ValueError, match="are more than the 150,000,000 allowed"):
        read_image(write_dicom(tmp_path / "a.dcm", RAMP8, 8, Rows=65535, Columns=65535))


def test_a_deflated_file_may_not_unfold_without_end(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", np.tile(RAMP8, (32, 32)), 8)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path)
    assert read_image(path).image.shape == (32 * SIDE, 32 * SIDE)
    monkeypatch.setattr(files, "MAX_BYTES", 2**21)
    assert path.stat().st_size < 2**21
    with pytest.raises(ValueError, match="unfolds into more than 2 MiB"):
        read_image(path)
    monkeypatch.setattr(files, "MAX_BYTES", 2**8)
    with pytest.raises(ValueError, match="more than the 0 allowed"):
        read_image(path)


def test_broken_files_end_in_an_image_or_a_reason():
    assert fuzz_radiographs.main(inputs=400, seed=1)


def test_files_outside_the_tables_folder_are_not_read(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    for folder in (tmp_path, inside):
        Image.fromarray(RAMP8).save(folder / "a.png")
    (inside / "link.png").symlink_to(tmp_path / "a.png")
    (inside / "circle.png").symlink_to(inside / "circle.png")
    (inside / "good.png").symlink_to(inside / "a.png")
    written = ["../a.png", str(tmp_path / "a.png"), "link.png", "circle.png", "x" * 5000, "a.png"]
    with pytest.raises(RadiographsError) as caught:
        read_radiographs(write_csv(inside, [row(path, f"p{k}") for k, path in enumerate(written)]), SIDE)
    reasons = [reason for _, _, reason in caught.value.problems]
    assert len(reasons) == 5 and all("outside the CSV's folder" in reason for reason in reasons[:3])
    assert reasons[3:] == ["no such file"] * 2
    assert len(read_radiographs(write_csv(inside, [row("good.png")]), SIDE)) == 1


def test_a_table_reached_by_a_link_reads_the_files_beside_it(folder, tmp_path):
    csv = write_csv(folder, six())
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert len(read_radiographs(tmp_path / "link" / csv.name, 32)) == 6


# Geometry -------------------------------------------------------------------------------------------------------------


def letterbox(image, size, spacing=(1, 1)):
    """The square, and (top, left, bottom, right) of the image in it."""
    steps, *_ = prepare(Radiograph(image, 8, spacing), size)
    square, (height, width) = steps["square"], image.shape
    (left, top), (right, bottom) = moved([(0, 0), (width, height)], np.linalg.inv(square.to_source)).round().astype(int)
    return square.image, (top, left, bottom, right)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64), st.floats(0.25, 4))
def test_letterbox_keeps_proportions_and_range(height, width, size, ratio):
    square, (top, left, bottom, right) = letterbox(np.ones((height, width), np.float32), size, (ratio, 1))
    assert square.shape == (size, size)
    assert max(bottom - top, right - left) == size
    longer, shorter = max(height * ratio, width), min(height * ratio, width)
    assert min(bottom - top, right - left) == pytest.approx(max(1, size * shorter / longer), abs=0.501)
    assert abs(top - (size - bottom)) <= 1 and abs(left - (size - right)) <= 1
    outside = np.ones((size, size), bool)
    outside[top:bottom, left:right] = False
    assert np.allclose(square[~outside], 1) and not square[outside].any()


@pytest.mark.parametrize("shape", [(300, 300), (300, 200), (200, 300)])
def test_a_centred_square_stays_centred_and_square(shape):
    image = np.zeros(shape, np.float32)
    middle = [slice(n // 2 - 40, n // 2 + 40) for n in shape]
    image[tuple(middle)] = 1
    square, _ = letterbox(image, 96)
    assert np.allclose(square, square[::-1]) and np.allclose(square, square[:, ::-1])
    assert np.allclose(square, square.T, atol=1e-5)
    assert square.sum() == pytest.approx((80 * 96 / 300) ** 2, rel=1e-3)


def test_resampling_is_antialiased_and_does_not_overshoot():
    stripes = np.tile(np.array([0, 1], np.float32), (256, 128))  # one pixel each: nothing of them is left at 32
    assert np.allclose(letterbox(stripes, 32)[0][4:-4, 4:-4], 0.5, atol=0.02)
    edge = np.repeat(np.array([[0.2, 0.8]], np.float32), 128, axis=1).repeat(256, axis=0)
    small = letterbox(edge, 50)[0]
    assert small.min() >= 0.2 - 1e-6 and small.max() <= 0.8 + 1e-6


# The table ------------------------------------------------------------------------------------------------------------


def test_mixed_depths_share_one_dtype(tmp_path):
    Image.fromarray(RAMP8).save(tmp_path / "a.png")
    Image.fromarray(RAMP16).save(tmp_path / "b.png")
    cohort = read_radiographs(write_csv(tmp_path, [row("a.png"), row("b.png")]), SIDE)
    assert cohort.pixels.dtype == np.uint16
    assert np.array_equal(cohort.pixels[0], RAMP8.astype(np.uint16) * 257)
    assert np.array_equal(cohort.pixels[1], RAMP16)
    alone = read_radiographs(write_csv(tmp_path, [row("a.png")]), SIDE)
    assert alone.pixels.dtype == np.uint8 and np.array_equal(alone.pixels[0], RAMP8)


@pytest.mark.parametrize(("sep", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_dialects_ids_and_defaults(folder, sep, encoding):
    rows = six(view=["AP", "", "lateral", "", "", ""], image_id=["x", "", "", "", "", ""], note=["å, ö"] * 6)
    rows[0] |= {"label": " aff", "patient_id": "007"}
    rows[1]["patient_id"] = "007"
    rows[2]["path"] = "images\\2.png"
    cohort = read_radiographs(write_csv(folder, rows, sep=sep, encoding=encoding), 32)
    assert list(cohort.table.image_id) == ["x", "007-2", "p2-1", "p2-2", "p3-1", "p3-2"]
    assert list(cohort.table.view) == ["AP", "unknown", "lateral", "unknown", "unknown", "unknown"]
    assert set(cohort.table.side) == {"unknown"}
    assert list(cohort.table.label) == ["AFF", "AFF", "NFF", "NFF", "NFF", "NFF"]
    assert cohort.patients.to_dict() == {"007": "AFF", "p2": "NFF", "p3": "NFF"}


def test_split_and_zone_come_along(folder):
    Image.fromarray(RAMP8[:, :32]).save(folder / "images/0.png")  # upright: the zone's fractions stay
    Image.fromarray(RAMP8[:32]).save(folder / "images/1.png")  # lying: bars above and below, a quarter each
    rows = six(
        split=["Train", "train", "validation", "validation", "TEST", "test"],
        zone_top=["0,25", 0.5, "", "", "", ""],
        zone_bottom=[0.75, 1, "", "", "", ""],
    )
    table = read_radiographs(write_csv(folder, rows, sep=";"), 32).table
    assert list(table.split) == ["train", "train", "validation", "validation", "test", "test"]
    assert np.allclose(table.zone_top[:2], [0.25, 0.5]) and np.allclose(table.zone_bottom[:2], [0.75, 0.75])
    assert table.zone_top[2:].isna().all()


def test_all_bad_rows_are_reported_together(folder):
    good = (folder / "images/0.png").read_bytes()
    (folder / "images/0.png").write_bytes(b"")
    (folder / "images/1.png").write_bytes(good[:200])
    (folder / "images/2.png").write_text("no image")
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(folder / "images/3.png")
    write_dicom(folder / "images/4.png", RAMP8[:0], 8)
    rows = [
        *six(image_id=list("abcdef"), split=["train", "test", "train", "training", "test", "test"]),
        row("images/gone.png", "p3", "Atypical", image_id="f", split="test"),
        row("images/5.png", "", "", image_id="h", split="test"),
        row("", "p9", image_id="i", split="train"),
        row("images", "p9", image_id="j", split="train"),
    ]
    with pytest.raises(RadiographsError) as caught:
        read_radiographs(write_csv(folder, rows), 32)
    message = str(caught.value)
    assert message.startswith("9 of 10 rows of mine.csv cannot be used (the header is row 1)")
    assert str(folder) not in message
    reasons = {number: (path, reason) for number, path, reason in caught.value.problems}
    assert reasons.keys() == {2, 3, 4, 5, 6, 8, 9, 10, 11}  # row 7 is a good one
    for number, path, *expected in [
        (2, "images/0.png", "empty (0 bytes)"),
        (3, "images/1.png", "unreadable image", "truncated", "patient 'p1' is in test here and in train in row 2"),
        (4, "images/2.png", "not a PNG, JPEG, TIFF or DICOM image"),
        (5, "images/3.png", "every pixel has the same value", "unknown split: splits are train, validation"),
        (6, "images/4.png", "unreadable image", "0 × 64 pixels"),
        (
            8,
            "images/gone.png",
            "no such file",
            "unknown label: labels are NFF and AFF",
            "'f' already",
            "row 7",
        ),
        (9, "images/5.png", "no patient_id", "unknown label", "the same file already stands in row 7"),
        (10, "", "no such file"),
        (11, "images", "no such file"),
    ]:
        assert reasons[number][0] == path
        assert f"row {number}: {reasons[number][1]}" in message
        for part in expected:
            assert part in reasons[number][1]


@pytest.mark.parametrize(
    ("zone", "reason"),
    [((0.5, 0.5), "not 0 ≤ zone_top < zone_bottom ≤ 1"), ((0.2, ""), "not 0 ≤"), (("top", 1), "zone_top is no number")],
)
def test_bad_zones(folder, zone, reason):
    with pytest.raises(RadiographsError, match=reason):
        read_radiographs(write_csv(folder, [row("images/0.png", zone_top=zone[0], zone_bottom=zone[1])]), 32)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "path;patient;label\na;b;AFF\n",
            "needed are path, patient_id, label; its first row has path, label, and 1 others",
        ),
        ("file\na\n", "its first row has none of them, and 1 others"),
        ("", "its first row has none of them, and 0 others"),
        ("path,patient_id,label\n\n", "a header and no rows"),
        ("path,patient_id,label,Label\na,b,AFF,NFF\n", "column label more than once"),
        ("path,patient_id,label\nimages/0.png,Doe, Jane,AFF\n", "row 2: 4 fields where the header has 3"),
        ("path,patient_id,label\n\nimages/0.png,p1\n", "row 3: 2 fields where the header has 3"),
    ],
)
def test_bad_tables(folder, text, reason):
    (folder / "mine.csv").write_text(text)
    with pytest.raises(RadiographsError) as caught:
        read_radiographs(folder / "mine.csv", 32)
    assert reason in str(caught.value) and "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "start", "separator"),
    [
        ("utf-8", "", ","),
        ("utf-8-sig", "", ";"),
        ("cp1252", "", ";"),
        ("utf-16", "", "\t"),
        ("utf-8", "sep=|\r\n", "|"),
    ],
)
def test_tables_as_spreadsheets_save_them(folder, encoding, start, separator):
    (folder / "images/0.png").rename(folder / "images/björk.png")
    lines = ["path,patient_id,label,view,remark", 'images/björk.png,Å1,AFF,"AP","two\nlines, ""quoted"""']
    lines += ["images/1.png,Å1,AFF,lateral,none"]
    text = start + "\r\n".join(line.replace(",", separator) for line in lines)
    (folder / "mine.csv").write_bytes(text.encode(encoding))
    table = read_radiographs(folder / "mine.csv", 32).table
    assert list(table.patient_id) == ["Å1", "Å1"] and list(table["view"]) == ["AP", "lateral"]


def test_no_text_and_missing_tables(folder):
    (folder / "mine.csv").write_bytes(b"path,patient_id,label\n\x81\x8d\x8f.png,p1,AFF\n")
    with pytest.raises(RadiographsError, match="no text in UTF-8, UTF-16 or Windows-1252"):
        read_radiographs(folder / "mine.csv", 32)
    with pytest.raises(RadiographsError, match=r"no CSV file .*gone\.csv"):
        read_radiographs(folder / "gone.csv", 32)


def test_a_long_list_of_bad_rows_is_cut_in_the_message_alone(tmp_path):
    csv = write_csv(tmp_path, [row(f"{k}.png", f"p{k}") for k in range(150)])
    with pytest.raises(RadiographsError, match="… and 50 more") as caught:
        read_radiographs(csv, 32)
    assert len(caught.value.problems) == 150


def test_floating_point_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP.astype(np.float32))
    with pytest.raises(RadiographsError, match="no white level: save it with 8 or 16 bits"):
        read_radiographs(write_csv(tmp_path, [row("a.tif")]), 32)


def test_12_bits_in_16_without_scaling_draw_a_warning(tmp_path):
    Image.fromarray(RAMP16 >> 4).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"1 of 1 images .* 12 bits written into 16 without scaling\? \(row 2\)"):
        read_radiographs(write_csv(tmp_path, [row("a.png")]), 32)


def test_some_rows_alone_are_as_among_all(folder):
    csv = write_csv(folder, six())
    everything, some = read_radiographs(csv, 16), read_radiographs(csv, 16, rows=[2, 0])
    np.testing.assert_allclose(some.images(), everything.take([2, 0]).images(), atol=1e-6)
    assert list(some.table.image_id) == list(everything.table.image_id.iloc[[2, 0]])


def test_the_cache_reads_only_what_changed(folder, monkeypatch):
    read = []
    original = preparing.read_image
    monkeypatch.setattr(preparing, "read_image", lambda path: read.append(path.name) or original(path))
    csv = write_csv(folder, six())

    def again(size=32):
        read.clear()
        return read_radiographs(csv, size, cache=folder / "cache")

    first = again()
    assert len(read) == 6
    second = again()
    assert read == []
    assert np.array_equal(first.pixels, second.pixels) and first.table.equals(second.table)
    Image.fromarray(RAMP8.T.copy()).save(folder / "images/2.png")
    os.utime(folder / "images/2.png", (0, 0))
    assert not np.array_equal(again().pixels[2], first.pixels[2])
    assert read == ["2.png"]
    again(size=16)
    assert len(read) == 6
    assert not list((folder / "cache").glob("*.part"))


def test_after_an_error_only_the_mended_rows_are_read(folder, monkeypatch):
    csv = write_csv(folder, [*six(), row("images/6.png", "p4", "NFF")])
    with pytest.raises(RadiographsError, match="1 of 7 rows"):
        read_radiographs(csv, 32, cache=folder / "cache")
    Image.fromarray(RAMP8).save(folder / "images/6.png")
    read = []
    original = preparing.read_image
    monkeypatch.setattr(preparing, "read_image", lambda path: read.append(path.name) or original(path))
    assert len(read_radiographs(csv, 32, cache=folder / "cache")) == 7
    assert read == ["6.png"]


# What rows say of their images ----------------------------------------------------------------------------------------


def test_a_region_is_cut_out_and_leads_back(folder):
    region = {"region_top": "0,25", "region_left": "0,5", "region_bottom": "0,75", "region_right": "1"}
    whole = read_radiographs(write_csv(folder, six()), 40)
    part = read_radiographs(write_csv(folder, [r | region for r in six()], sep=";"), 20)
    assert np.array_equal(part.pixels, whole.pixels[:, 10:30, 20:40])
    assert part.table[list(TO_SOURCE)].drop_duplicates().values.tolist() == [[1, 0, 20, 0, 1, 10]]


def test_a_turn_and_a_side_of_the_table_come_before_those_of_the_tags(tmp_path):
    write_dicom(tmp_path / "a.dcm", RAMP8, 8, PatientOrientation=["L", "H"], ImageLaterality="R")
    csv = write_csv(tmp_path, [row("a.dcm", turn="90", side="left")])
    cohort = read_radiographs(csv, SIDE, how=Preparation(one_side=True))
    assert np.array_equal(cohort.pixels[0], np.rot90(RAMP8)) and cohort.table.side[0] == "left"
    csv = write_csv(tmp_path, [row("a.dcm")])
    cohort = read_radiographs(csv, SIDE, how=Preparation(one_side=True))
    assert np.array_equal(cohort.pixels[0], np.rot90(RAMP8, 2)[:, ::-1]) and cohort.table.side[0] == "right"


def test_the_zone_goes_where_the_image_goes(folder):
    zone = {"zone_top": [0.2] * 6, "zone_bottom": [0.5] * 6, "turn": ["0", "180", "", "90", "", ""]}
    cohort = read_radiographs(write_csv(folder, six(**zone)), 64)
    assert np.allclose(cohort.table[["zone_top", "zone_bottom"]][:3], [[0.2, 0.5], [0.5, 0.8], [0.2, 0.5]])
    assert cohort.table[["zone_top", "zone_bottom"]].isna().all(axis=1).tolist() == [False] * 3 + [True] + [False] * 2


def test_excluded_rows_are_not_read_and_counted_with_their_reason(folder):
    reasons = ["", "knee", "", "", "", "knee"]
    csv = write_csv(folder, [*six(exclude=reasons), row("gone.png", "p9", "?", exclude="no consent")])
    cohort = read_radiographs(csv, 32)
    assert list(cohort.table.image_id) == ["p1-1", "p2-1", "p2-2", "p3-1"]
    write_csv(folder, [{"id": "x", "problem": "no label"}, {"id": "y", "problem": "no label"}], "excluded.csv")
    assert flow(csv).astype(object).where(lambda t: t.notna(), None).values.tolist() == [
        ["not imported: no label", 2, None],
        ["excluded: knee", 2, 2],
        ["excluded: no consent", 1, 1],
        ["read: AFF", 1, 1],
        ["read: NFF", 3, 2],
    ]
    with pytest.raises(RadiographsError, match=r"mine\.csv excludes every row"):
        read_radiographs(write_csv(folder, six(exclude=["x"] * 6)), 32)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"turn": ["45"] * 6}, "turn is none of 0, 90, 180, 270"),
        ({"region_top": ["0.1"] * 6}, "not 0 ≤ region_top < region_bottom ≤ 1"),
    ],
)
def test_turns_and_regions_that_cannot_be(folder, more, reason):
    with pytest.raises(RadiographsError, match=reason) as caught:
        read_radiographs(write_csv(folder, six(**more)), 32)
    assert len(caught.value.problems) == 6


def test_steps_end_with_the_square_that_is_read(folder):
    csv = write_csv(folder, six(turn=["", "90", "", "", "", ""]))
    how = Preparation(crop=True)
    shown = steps(csv, [1, 2], 48, how)
    assert list(shown) == ["decoded", "borders off", "proximal up", "square"]
    assert all(images.shape == (2, 48, 48) for images in shown.values())
    assert np.allclose(shown["square"], read_radiographs(csv, 48, how=how).images()[1:3, 0], atol=0.01)
    assert np.array_equal(shown["decoded"][1], shown["proximal up"][1])


def test_an_image_prepared_otherwise_is_not_taken_from_the_cache(folder, tmp_path):
    csv, cache = write_csv(folder, six()), tmp_path / "cache"
    plain = read_radiographs(csv, 40, cache)
    turned = read_radiographs(write_csv(folder, six(turn=["180"] * 6)), 40, cache)
    assert np.array_equal(plain.pixels, turned.pixels[:, ::-1, ::-1])
    assert read_radiographs(write_csv(folder, six()), 40, cache).table.equals(plain.table)


def test_what_the_tags_say_is_burned_in_is_said(tmp_path, capsys):
    write_dicom(tmp_path / "a.dcm", RAMP8, 8, BurnedInAnnotation="YES")
    read_radiographs(write_csv(tmp_path, [row("a.dcm")]), SIDE)
    assert "1 of 1 files: DICOM says that something identifying is burned into the pixels" in capsys.readouterr().out


def test_a_script_without_a_main_guard_reads_over_all_cores(tmp_path):
    for k in range(130):
        Image.fromarray(np.roll(RAMP8, k)).save(tmp_path / f"{k}.png")
    csv = write_csv(tmp_path, [row(f"{k}.png", f"p{k}") for k in range(130)])
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nos.cpu_count = lambda: 2\nfrom lib.radiographs.table import read_radiographs\n"
        f"print(len(read_radiographs({str(csv)!r}, 16)))"
    )
    done = subprocess.run([sys.executable, script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.strip() == "130", done.stderr


# Odd tables and tags --------------------------------------------------------------------------------------------------


def test_a_table_without_a_header_is_not_quoted(tmp_path):
    (tmp_path / "mine.csv").write_text("Meyer_Hans/1.png,4711,AFF\nMeyer_Hans/2.png,4711,AFF\n")
    with pytest.raises(RadiographsError, match="lacks the columns path, patient_id, label") as caught:
        read_radiographs(tmp_path / "mine.csv", 8)
    assert "Meyer" not in str(caught.value) and "4711" not in str(caught.value)


def test_a_quote_that_is_never_closed_swallows_no_rows(folder):
    lines = ["path,patient_id,label,remark", *(f"images/{k}.png,p{k},AFF," for k in range(6))]
    lines[3] += '"old nail'
    (folder / "mine.csv").write_text("\n".join(lines))
    with pytest.raises(RadiographsError, match=r"mine\.csv is no CSV file, after its row 3"):
        read_radiographs(folder / "mine.csv", 8)


def test_a_slope_of_zero_makes_no_image(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP16, 16, RescaleSlope=0, RescaleIntercept=5)
    with pytest.raises(ValueError, match="a modality transform that makes all values one"):
        read_image(path)


@pytest.mark.parametrize("signed", [False, True])
def test_pixels_with_spare_bits_on_the_right(tmp_path, signed):
    stored = (RAMP16 >> 4).astype(np.int16) - 2048 if signed else RAMP16 >> 4
    plain = read_image(write_dicom(tmp_path / "a.dcm", stored, 12)).image
    shifted = (stored << 4).astype(stored.dtype)
    assert np.array_equal(read_image(write_dicom(tmp_path / "b.dcm", shifted, 12, HighBit=15)).image, plain)


@pytest.mark.parametrize("spacing", [0.15, None, ["nan", "0.1"], [0.1, 0.0]])
def test_odd_pixel_spacings_are_square_pixels(tmp_path, spacing):
    path = write_dicom(tmp_path / "a.dcm", RAMP8, 8)
    ds = pydicom.dcmread(path)
    ds.add_new(0x00280030, "DS", spacing)
    ds.save_as(path)
    assert read_image(path).spacing == (1, 1)


def test_empty_rescale_is_none(tmp_path):
    plain = read_image(write_dicom(tmp_path / "a.dcm", RAMP16, 16)).image
    empty = write_dicom(tmp_path / "b.dcm", RAMP16, 16, RescaleSlope=None, RescaleIntercept=None)
    assert np.array_equal(read_image(empty).image, plain)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless])
def test_a_small_dicom_may_not_hold_a_giant_codestream(tmp_path, syntax):
    if syntax == JPEG2000Lossless:
        codestream = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">4I", 20_000, 20_000, 0, 0) + bytes(40)
    else:
        codestream = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x0b\x08" + struct.pack(">2H", 20_000, 20_000) + bytes(40)
    path = write_dicom(tmp_path / "a.dcm", RAMP8, 8)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = pydicom.encaps.encapsulate([codestream])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path)
    with pytest.raises(ValueError, match="20000 × 20000 pixels are more than the 150,000,000 allowed"):
        read_image(path)


def test_sides_in_other_words_are_mirrored_too(folder):
    sides = ["rechts", "R", "right", "left", "links", ""]
    plain = read_radiographs(write_csv(folder, six()), 40)
    found = read_radiographs(write_csv(folder, six(side=sides)), 40, how=Preparation(one_side=True))
    assert np.array_equal(found.pixels[:3], plain.pixels[:3, :, ::-1]) and np.array_equal(
        found.pixels[3:], plain.pixels[3:]
    )


def test_thousands_of_bad_rows_take_no_memory(tmp_path):
    csv = write_csv(tmp_path, [row(f"{k}.png", f"p{k}") for k in range(3000)])
    with pytest.raises(RadiographsError, match="3000 of 3000 rows"):
        read_radiographs(csv, 20_000)


def test_somebody_elses_excluded_csv_does_not_matter(folder):
    (folder / "excluded.csv").write_text("who,why\nx,y\n")
    assert flow(write_csv(folder, six())).images.sum() == 6
