"""The scan of a run for what leads to a patient: everything planted is found, and nothing else."""

import base64
import gzip
import io
import json
import struct
import zipfile
import zlib

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from made_files import RAMP8, write_dicom
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from lib.checks import privacy
from lib.checks.privacy import Identifiers, main, words
from lib.radiographs.importing import pseudonym
from lib.run.files import ROOT
from lib.run.folder import Run
from lib.run.parameters import within_repository

PERSON = {
    "PatientName": "Meyerbeer^Giacomo", "PatientID": "4711082", "PatientBirthDate": "17910905",
    "AccessionNumber": "ACX-99012", "StudyDate": "20260102", "InstitutionName": "Haus Edelweiss",
    "ReferringPhysicianName": "Müller", "OperatorsName": "Ria Meyer-Lüdenscheidt", "SpecificCharacterSet": "ISO_IR 192",
    "SeriesInstanceUID": "1.2.3.4711", "PatientComments": "rufe Tante",
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on a table that names one DICOM file, with nothing in it yet."""
    monkeypatch.setattr(privacy, "KEY", tmp_path / "nowhere" / "key")
    source = tmp_path / "PACS_4711"
    source.mkdir()
    write_dicom(source / "vonTrapp_Maria.dcm", RAMP8, 8, **PERSON)
    rows = [{"path": "vonTrapp_Maria.dcm", "patient_id": "P1", "label": "AFF", "view": "AP", "ward": "Station Nord"}]
    pd.DataFrame(rows).to_csv(source / "mine.csv", index=False)
    run = Run(tmp_path / "run")
    csv = within_repository(source / "mine.csv")
    run.record(parameters={"radiographs_csv": csv}, notebooks={"01": {"started": "2026-01-02T03:04:05"}})
    return run


def png(text):
    file, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("Comment", text, zip=True)
    Image.fromarray(RAMP8).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def pdf(path, text):
    fig, ax = plt.subplots()
    ax.set_title(text)
    with plt.rc_context({"pdf.fonttype": 42}):
        fig.savefig(path)
    plt.close(fig)


def encoded(text):
    return base64.b64encode(png(text)).decode()


def notebook(text):
    return json.dumps({"cells": [{"outputs": [{"data": {"image/png": encoded(text)}}]}]})


def svg(text):
    return base64.b64encode(f"<svg><text>{text}</text>{'<g/>' * 60}</svg>".encode()).decode()


def late(text):
    """A PNG with a comment behind its pixels."""
    data, comment = png("nothing"), b"tEXtComment\0" + text.encode()
    end = data.index(b"IEND") - 4
    chunk = struct.pack(">I", len(comment) - 4) + comment + struct.pack(">I", zlib.crc32(comment))
    return data[:end] + chunk + data[end:]


PLANT = {
    "table.csv": lambda path, text: path.write_text(f"image_id,who\n1,{text}\n"),
    "log.txt": lambda path, text: path.write_text(f"could not read '{text}'"),
    "page.html": lambda path, text: path.write_text("<p>" + "".join(f"&#{ord(letter)};" for letter in text)),
    "picture.html": lambda path, text: path.write_text(f"<img src='data:image/png;base64,{encoded(text)}'>"),
    "copy.ipynb": lambda path, text: path.write_text(notebook(text)),
    "escaped.json": lambda path, text: path.write_text('"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"'),
    "figure.png": lambda path, text: path.write_bytes(png(text)),
    "figure.pdf": pdf,
    "weights.safetensors": lambda path, text: save_file({"a": np.zeros(3)}, path, {"json": text}),
    "checkpoint.pt": lambda path, text: torch.save({"patient": text}, path),
    "error.json": lambda path, text: path.write_text(json.dumps({"error": f"row 3\n{text}\tis no label"})),
    "error.ipynb": lambda path, text: path.write_text(json.dumps({"evalue": f"\x1b[0;31m{text}\x1b[0m"})),
    "lines.ipynb": lambda path, text: path.write_text(json.dumps({"source": ["a\n", text]})),
    "strings.npy": lambda path, text: np.save(path, np.array([text, "b"])),
    "objects.npy": lambda path, text: np.save(path, np.array([text, None], object), allow_pickle=True),
    "arrays.npz": lambda path, text: np.savez(path, a=np.array([text])),
    "log.txt.gz": lambda path, text: path.write_bytes(gzip.compress(text.encode())),
    "files.zip": lambda path, text: zipfile.ZipFile(path, "w").writestr("a.txt", text),
    "svg.html": lambda path, text: path.write_text(f"<img src='data:image/svg+xml;base64,{svg(text)}'>"),
    "late.png": lambda path, text: path.write_bytes(late(text)),
    "western.txt": lambda path, text: path.write_bytes(f"für {text}".encode("cp1252")),
    "wide.txt": lambda path, text: path.write_bytes(text.encode("utf-16")),
    "link.html": lambda path, text: path.write_text("<a href='" + "".join(f"%{ord(c):02x}" for c in text) + "'>"),
    "array.npy": lambda path, text: np.save(path, np.zeros(2, [(text, "f4")])),
}  # fmt: skip


def scanned(run, capsys, *more):
    capsys.readouterr()
    status = main([str(run.folder), *more])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("kind", PLANT)
def test_a_name_is_found_in_every_kind_of_file(run, capsys, kind):
    PLANT[kind](run / kind, "Meyerbeer")
    status, printed = scanned(run, capsys)
    assert status == 1 and f"{kind} PatientName of a file" in " ".join(printed.split())
    assert "eyerbeer" not in printed
    PLANT[kind](run / kind, "Offenbach")
    assert scanned(run, capsys)[0] == 0


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("MEYERBEER, GIACOMO", "PatientName"), ("giacomo_meyerbeer.png", "PatientName"),
        ("number 4711082.", "PatientID"),
        ("born 05.09.1791", "PatientBirthDate"), ("1791-09-05T00:00", "PatientBirthDate"),
        ("acx 99012", "AccessionNumber"), ("4711082.0", "PatientID"), ("4711082.1.png", "PatientID"),
        ("0004711082", "PatientID"), ("5.9.1791", "PatientBirthDate"), ("05-Sep-1791", "PatientBirthDate"),
        ("September 5, 1791", "PatientBirthDate"), ("Müller", "ReferringPhysicianName"),
        ("Mueller", "ReferringPhysicianName"), ("Lüdenscheidt", "OperatorsName"), ("1.2.3.4711", "SeriesInstanceUID"),
        ("Kommentar: rufe Tante", "PatientComments"),
        ("in Haus Edelweiss", "InstitutionName"), ("vontrapp-maria", "file name"),
        ("station  nord", "column 'ward'"), (str(ROOT), "path of this machine"), ("/PACS_4711/x", None),
    ],
)  # fmt: skip
def test_what_leads_to_a_patient_is_found_however_it_is_written(run, capsys, text, kind):
    (run / "log.txt").write_text(text)
    status, printed = scanned(run, capsys)
    assert status == (kind is not None) and (kind or " none of them") in printed.split("Found")[-1]


@pytest.mark.parametrize(
    "text",
    ["0.4711082", "14711082", "Meyerbeerstrasse", "2026-01-02", "P1 AP AFF", "17910906", "Iabc4711082de"],
)
def test_what_only_looks_alike_is_not(run, capsys, text):
    (run / "log.txt").write_text(text)
    assert scanned(run, capsys)[0] == 0


def test_names_of_files_and_folders_are_looked_at(run, capsys):
    (run / "4711082").mkdir()
    (run / "4711082" / "a.txt").touch()
    status, printed = scanned(run, capsys)
    assert status == 1 and "a file's name" in printed and "4711082" not in printed


def test_sources_and_linkage_are_looked_up_too(run, capsys, tmp_path):
    (run / "log.txt").write_text("Rossini 8899001")
    assert scanned(run, capsys)[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    write_dicom(other / "x.dcm", RAMP8, 8, PatientName="Rossini^Gioachino")
    assert "PatientName" in scanned(run, capsys, "--source", str(other))[1].split("Found")[1]
    pd.DataFrame({"patient_number": ["8899001"], "file": ["x.dcm"]}).to_csv(tmp_path / "linkage.csv", index=False)
    assert "patient_number" in scanned(run, capsys, "--linkage", str(tmp_path / "linkage.csv"))[1].split("Found")[1]


@pytest.mark.parametrize(
    "arguments",
    [["missing"], [".", "--source", "missing"], [".", "--linkage", "missing"]],
    ids=["run", "source", "linkage"],
)
def test_a_request_that_makes_no_sense_is_said(run, capsys, arguments, monkeypatch):
    monkeypatch.chdir(run.folder)
    assert main(arguments) == 2
    assert "missing" in capsys.readouterr().err


@example("0A𝕊0", "", "")
@given(st.text(min_size=1), st.text(), st.text())
def test_what_is_looked_for_is_found_between_anything_that_is_no_word(text, before, after):
    identifiers = Identifiers()
    identifiers.add("text", text)
    found = identifiers.found(f"{before} | {text} | {after}")
    assert set(found) == set(identifiers.kinds)
    assert all(words(" ".join(sequence)) == sequence for sequence in identifiers.kinds)


def test_the_authors_own_files_make_nothing_ordinary(run, capsys, monkeypatch, tmp_path):
    (run / "log.txt").write_text("Meyerbeer 4711082")
    labels = ROOT / "labels_of_a_test.csv"
    labels.write_text("patient_number,label\n4711082,AFF\n")
    try:
        status, printed = scanned(run, capsys)
    finally:
        labels.unlink()
    assert status == 1 and "PatientID" in printed.split("Found")[1]


def test_without_anything_to_look_for_nothing_is_proved(run, capsys, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(RAMP8).save(folder / "p1-1.png")
    pd.DataFrame([{"path": "p1-1.png", "patient_id": "p1", "label": "AFF"}]).to_csv(folder / "t.csv", index=False)
    run.record(parameters={"radiographs_csv": within_repository(folder / "t.csv")})
    assert scanned(run, capsys)[0] == 2


def test_nothing_of_a_file_gets_to_the_terminal(run, capfd, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    with pytest.warns(UserWarning):
        write_dicom(odd / "x.dcm", RAMP8, 8, StudyInstanceUID="1.2.0004711.1")
    capfd.readouterr()
    main([str(run.folder), "--source", str(odd)])
    printed = capfd.readouterr()
    assert "0004711" not in printed.out + printed.err


def test_an_imports_ids_are_no_numbers():
    identifiers = Identifiers()
    for number in range(10_000, 12_000):
        identifiers.add("number", str(number))
    ids = " ".join(f"I{pseudonym(b'k' * 32, str(k))}" for k in range(4000))
    assert not identifiers.found(ids)


def test_pixels_of_a_figure_are_no_numbers(run, capsys):
    fig, ax = plt.subplots()
    ax.imshow(np.full((64, 64), ord("4")), cmap="gray", vmin=0, vmax=255)  # drawn with a long palette
    fig.savefig(run / "figure.pdf")
    plt.close(fig)
    numbers = Identifiers()
    numbers.add("number", "4" * 64)
    texts = privacy.texts("figure.pdf", (run / "figure.pdf").read_bytes())
    assert not any(numbers.found(text) for text in texts)
    assert scanned(run, capsys)[0] == 0
