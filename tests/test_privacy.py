"""The scan of a run for what leads to a patient: everything planted is found, and nothing else."""

import base64
import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_files import RAMP8, write_dicom
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from lib import privacy
from lib.privacy import Identifiers, main, words
from lib.runs import ROOT, Run
from run_all import within_repository

PERSON = {
    "PatientName": "Meyerbeer^Giacomo", "PatientID": "4711082", "PatientBirthDate": "17910905",
    "AccessionNumber": "ACX-99012", "StudyDate": "20260102", "InstitutionName": "Haus Edelweiss",
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
        ("acx 99012", "AccessionNumber"), ("in Haus Edelweiss", "InstitutionName"), ("vontrapp-maria", "file name"),
        ("station  nord", "column 'ward'"), (str(ROOT), "path of this machine"), ("/PACS_4711/x", None),
    ],
)  # fmt: skip
def test_what_leads_to_a_patient_is_found_however_it_is_written(run, capsys, text, kind):
    (run / "log.txt").write_text(text)
    status, printed = scanned(run, capsys)
    assert status == (kind is not None) and (kind or "Found none") in printed.split("Found")[-1] + printed


@pytest.mark.parametrize("text", ["0.4711082", "14711082", "Meyerbeerstrasse", "2026-01-02", "P1 AP AFF", "17910906"])
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


@given(st.text(min_size=1), st.text(), st.text())
def test_what_is_looked_for_is_found_between_anything_that_is_no_word(text, before, after):
    identifiers = Identifiers()
    identifiers.add("text", text)
    found = identifiers.found(f"{before} | {text} | {after}")
    assert set(found) == set(identifiers.kinds)
    assert all(words(" ".join(sequence)) == sequence for sequence in identifiers.kinds)
