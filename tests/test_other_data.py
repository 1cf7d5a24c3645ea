"""Other data through the notebooks, smoke profile: radiographs of one's own, and a leak that must be found."""

import json

import numpy as np
import pandas as pd
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from lib.checks import privacy
from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from run_all import NOTEBOOKS, main


def test_the_canary_stops_the_run(tmp_path, capsys):
    """A test patient given to the generators: the audit must find it by the weights, and nothing comes after."""
    assert main(["--profile", "smoke", "-p", "leak_canary", "true"], NOTEBOOKS, tmp_path) == 1
    output = capsys.readouterr().err
    assert "the leak audit failed" in output and "cyclegan of r0f0, whose patients are not those" in output
    states = json.loads((tmp_path / "smoke" / "manifest.json").read_text(encoding="utf-8"))["notebooks"]
    assert [record["state"] for record in states.values()] == ["finished", "failed"]


def write_dicom(path, pixels):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.PatientName, image.PatientID = "Secret^Name", "19400101-1234"
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelData = pixels.astype("<u2").tobytes()
    image.save_as(path, enforce_file_format=True)


def test_own_radiographs_through_all_notebooks(tmp_path):
    """PNG, JPEG, TIFF and DICOM, 8 and 16 bit, named by a CSV, take the phantom's place everywhere."""
    phantom = Phantom(patients=36, size=48, aff_share=0.4, seed=11)
    cohort, rows = phantom.cohort(), []
    for number, (row, pixels) in enumerate(zip(cohort.table.itertuples(), cohort.pixels, strict=True)):
        kind = ("png", "jpg", "tif", "dcm", "16.png")[number % 5]
        path = tmp_path / "hospital" / "files" / f"{number}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "dcm":
            write_dicom(path, pixels.astype(np.uint16) * 257)
        else:
            Image.fromarray(pixels.astype(np.uint16) * 257 if kind == "16.png" else pixels).save(path)
        rows.append({"path": f"files/{path.name}", "patient_id": row.patient_id, "label": row.label})
        rows[-1] |= {"name": "Meier, Hans", "born": "17.05.1943"}
    csv = tmp_path / "hospital" / "cohort.csv"
    pd.DataFrame(rows).to_csv(csv, index=False)
    hidden = ["-p", "training_aff_share", "0.7", "-p", "methods", "[cyclegan, cyclediff, noise, oracle]"]
    hidden += ["-p", "conditions", "[real, oversampling, cyclegan, oracle]", "-p", "cyclediff_ablations", "[]"]
    hidden += ["-p", "simulations", "1", "-p", "bootstrap_draws", "100", "-p", "sampling_trials", "[euler 1]"]
    assert main(["--profile", "smoke", "-p", "radiographs_csv", str(csv), *hidden], NOTEBOOKS, tmp_path / "runs") == 0
    run = tmp_path / "runs" / "smoke"
    loaded = Cohort.load(run / "cohort")
    assert loaded.pixels.dtype == np.uint16 and len(loaded) == len(cohort)
    assert Cohort.load(run / "synthetic" / "cyclegan" / "r0f0").pixels.dtype == np.uint16
    fidelity = pd.read_csv(run / "fidelity.csv")
    assert not fidelity.metric.str.startswith("counterfactual").any()
    assert "own radiographs" in (run / "answers.md").read_text(encoding="utf-8")
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"Secret" not in content and b"19400101" not in content, path
    assert privacy.main([str(run), "--source", str(csv.parent / "files")]) == 0
