"""A folder of DICOM files made a table and pictures that name nobody."""

import os
import stat
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_files import RAMP8, RAMP16, write_dicom
from PIL import Image, ImageDraw, ImageFont

from lib.data.cohort import TO_SOURCE
from lib.radiographs import importing
from lib.radiographs.__main__ import main
from lib.radiographs.decoding import Radiograph, read_image
from lib.radiographs.geometry import moved
from lib.radiographs.importing import import_folder, pseudonym, read_key
from lib.radiographs.table import RadiographsError, read_radiographs

# Nothing that a hash is likely to hold by chance
SECRET = ["Doe", "Jane", "19000101", "ACCNR", "KLINIK", "1.2.826", "Smith", "20190203"]


def study(folder, patients=6):
    """Two images of each patient; every second one has AFF, found by accession in one half."""
    rows = []
    for number in range(patients):
        person = {
            "PatientID": f"19000101-{number}",
            "PatientName": "Doe^Jane",
            "StudyDate": "20190203",
            "AccessionNumber": f"ACCNR{number}",
            "InstitutionName": "KLINIK",
            "ReferringPhysicianName": "Smith",
        }
        for image in range(2):
            path = folder / f"Doe_Jane_{number}" / f"20190203-{image}.dcm"
            path.parent.mkdir(exist_ok=True)
            pixels = np.roll(RAMP16, 97 * (2 * number + image))
            write_dicom(path, pixels, 16, SOPInstanceUID=f"1.2.826.{number}.{image}", ViewPosition="AP", **person)
        rows.append({"patient_number": "" if number % 2 else f"19000101-{number}", "accession": f"ACCNR{number}",
                     "label": "AFF" if number % 2 else "NFF"})  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False, sep=";")
    return folder / "labels.csv"


@pytest.fixture
def hospital(tmp_path):
    folder = tmp_path / "PACS_export_Smith"
    folder.mkdir()
    return folder, study(folder), tmp_path / "out", tmp_path / "private" / "key"


def everything(out):
    """Every name and byte below a folder, PNG pixels aside."""
    texts = []
    for path in sorted(out.rglob("*")):
        texts.append(str(path.relative_to(out)))
        if path.is_file():
            texts.append(path.read_bytes().split(b"IDAT")[0].decode("latin-1"))
    return "\n".join(texts)


def test_a_folder_becomes_a_table_that_names_nobody(hospital):
    folder, labels, out, key = hospital
    flow = import_folder(folder, labels, out, key).set_index("what").images
    assert flow["in the table: AFF"] == flow["in the table: NFF"] == 6 and flow["no DICOM file"] == 1
    table = pd.read_csv(out / "radiographs.csv", dtype=str)
    assert len(table) == 12 and table.patient_id.nunique() == 6 and set(table["view"]) == {"AP"}
    assert (table.groupby("patient_id").label.nunique() == 1).all()
    assert table.image_id.is_monotonic_increasing  # files are in the order of names
    found = everything(out)
    assert not [word for word in SECRET if word.lower() in found.lower()]
    cohort = read_radiographs(out / "radiographs.csv", 64)
    assert sorted(cohort.table.image_id) == sorted(table.image_id)
    original = read_image(folder / "Doe_Jane_0" / "20190203-0.dcm").image
    differences = [abs(read_image(out / path).image - original).max() for path in table.path]
    assert min(differences) < 1e-4


def test_key_and_linkage_are_their_owners_alone(hospital):
    folder, labels, out, key = hospital
    import_folder(folder, labels, out, key)
    linkage = importing.linkage_of(key, out)
    assert linkage.parent == key.parent
    assert [stat.S_IMODE(path.stat().st_mode) for path in (key, linkage)] == [0o600, 0o600]
    who = pd.read_csv(linkage, dtype=str, keep_default_na=False)
    table = pd.read_csv(out / "radiographs.csv", dtype=str)
    ids = who[who.problem == ""].set_index("id").loc[table.image_id.str[1:]]
    again = ["P" + pseudonym(key.read_text().encode(), number) for number in ids.patient_number]
    assert again == list(table.patient_id)
    with pytest.raises(RadiographsError, match="lies in the output folder"):
        import_folder(folder, labels, out, out / "key")
    assert not (out / "key").exists()
    (key.parent / "short").write_text("abc")
    with pytest.raises(RadiographsError, match="no key of 32"):
        read_key(key.parent / "short", out)


def test_ids_depend_on_the_key_and_on_nothing_that_changes(hospital, tmp_path):
    folder, labels, out, key = hospital
    import_folder(folder, labels, out, key)
    same = import_folder(folder, labels, tmp_path / "again", key)
    import_folder(folder, labels, tmp_path / "other", tmp_path / "other_key")
    tables = [pd.read_csv(f / "radiographs.csv") for f in (out, tmp_path / "again", tmp_path / "other")]
    assert len(same) and tables[0].equals(tables[1])
    assert not set(tables[0].patient_id) & set(tables[2].patient_id)


def test_a_second_call_reads_only_what_is_new(hospital, monkeypatch):
    folder, labels, out, key = hospital
    import_folder(folder, labels, out, key)
    before = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    read = []
    original = importing._import
    monkeypatch.setattr(importing, "_import", lambda file, **how: read.append(file[0].name) or original(file, **how))
    import_folder(folder, labels, out, key)
    assert read == ["labels.csv"] and before == {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    write_dicom(folder / "new.dcm", RAMP8, 8, PatientID="19000101-0", SOPInstanceUID="1.2.826.9")
    next((out / "images").iterdir()).unlink()
    import_folder(folder, labels, out, key)
    assert len(read) == 1 + 3 and len(pd.read_csv(out / "radiographs.csv")) == 13


def test_interrupted_imports_go_on(hospital, monkeypatch):
    folder, labels, out, key = hospital
    monkeypatch.setattr(importing, "EVERY", 1)
    original, read = importing._import, []

    def stops(file, **how):
        read.append(file)
        if len(read) == 5:
            raise KeyboardInterrupt
        return original(file, **how)

    monkeypatch.setattr(importing, "_import", stops)
    with pytest.raises(KeyboardInterrupt):
        import_folder(folder, labels, out, key)
    import_folder(folder, labels, out, key)
    assert len(read) == 5 + 13 - 3 and len(pd.read_csv(out / "radiographs.csv")) == 12


def test_what_is_left_out_says_why(hospital, capsys):
    folder, labels, out, key = hospital
    (folder / "broken.dcm").write_bytes((folder / "Doe_Jane_0" / "20190203-0.dcm").read_bytes()[:700])
    write_dicom(folder / "nobody.dcm", RAMP8, 8, PatientID="")
    write_dicom(folder / "unlabelled.dcm", RAMP8, 8, PatientID="19000101-77")
    write_dicom(folder / "zz_copy.dcm", RAMP8, 8, PatientID="19000101-0", SOPInstanceUID="1.2.826.0.0")
    (folder / ".hidden").write_text("x")
    os.symlink("/etc/hostname", folder / "link.dcm")
    arguments = [str(folder), "--labels", str(labels), "--out", str(out), "--key", str(key)]
    assert main(arguments) == 0
    excluded = pd.read_csv(out / "excluded.csv")
    assert excluded.id.is_monotonic_increasing
    assert sorted(excluded.problem) == [
        "no DICOM file", "no label", "no patient number", "the same image as another file", "unreadable",
    ]  # fmt: skip
    assert not [word for word in SECRET if word.lower() in everything(out).lower()]
    assert "in the table: AFF" in capsys.readouterr().out
    assert main([str(folder / "nowhere"), *arguments[1:]]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number,label\n1,AFF\n", "needs the column patient_number or accession"),
        ("patient_number,diagnosis\n1,AFF\n", "lacks the column label"),
        ("patient_number,label\n1,AFF\n2,fracture\n", "not AFF or NFF in row 3"),
        ("patient_number,label\n1,AFF\n2,NFF\n1,NFF\n", "another label for a number than an earlier row in row 2, 4"),
        ("patient_number,label\n1,AFF\n2\n", "too few or too many in row 3"),
    ],
)
def test_labels_that_cannot_be_used_are_named_by_row_alone(hospital, text, message):
    folder, labels, out, key = hospital
    labels.write_text(text)
    with pytest.raises(RadiographsError, match=message):
        import_folder(folder, labels, out, key)


def test_pictures_are_square_pixelled_and_never_enlarged():
    read = importing.Radiograph(np.linspace(0, 1, 200 * 100, dtype=np.float32).reshape(200, 100), 12, (0.1, 0.2))
    assert importing.picture(read, 1024)[0].size == (200, 200)
    assert importing.picture(read, 50)[0].size == (50, 50)
    assert np.asarray(importing.picture(read, 50)[0]).dtype == np.uint16
    assert importing.picture(read._replace(bits=8), 50)[0].mode == "L"


def test_another_size_makes_other_pictures_of_the_same_names(hospital):
    folder, labels, out, key = hospital
    import_folder(folder, labels, out, key, size=32)
    names = sorted(path.name for path in (out / "images").iterdir())
    import_folder(folder, labels, out, key, size=48)
    assert sorted(path.name for path in (out / "images").iterdir()) == names
    assert {Image.open(path).size for path in (out / "images").iterdir()} == {(48, 48)}


def test_other_code_makes_pictures_again(hospital, monkeypatch):
    folder, labels, out, key = hospital
    import_folder(folder, labels, out, key)
    read, original = [], importing.read_image
    monkeypatch.setattr(importing, "read_image", lambda path: read.append(path) or original(path))
    monkeypatch.setattr(
        importing, "source_hash", lambda *those: "another" if importing.picture in those else "the same"
    )
    import_folder(folder, labels, out, key)
    assert len(read) == 12


def test_hospitals_are_told_apart_and_not_named(hospital):
    folder, labels, out, key = hospital
    write_dicom(folder / "z.dcm", RAMP16[::-1], 16, PatientID="19000101-0", InstitutionName="SPITAL")
    import_folder(folder, labels, out, key)
    table = pd.read_csv(out / "radiographs.csv")
    assert sorted(table.hospital.value_counts()) == [1, 12]
    assert not any(secret in everything(out) for secret in (*SECRET, "SPITAL"))


def test_pictures_are_head_up_and_writing_can_be_hidden():
    image = np.full((300, 400), 0.3, np.float32)
    page = Image.fromarray((image * 255).astype(np.uint8))
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 16)
    ImageDraw.Draw(page).text((5, 5), "MEIER HANS 1943", font=font, fill=255)
    lying = Radiograph(np.asarray(page, np.float32) / 255, 8, (1, 2), quarters=1)
    assert importing.picture(lying, 800)[0].size == (300, 800)
    assert np.asarray(importing.picture(lying, 800)[0])[:, :30].max() > 200
    assert np.asarray(importing.picture(lying, 800, hide_text=True)[0]).max() < 100


def test_what_was_filled_into_the_table_by_hand_stays(hospital):
    folder, labels, out, key = hospital
    import_folder(folder, labels, out, key)
    table = pd.read_csv(out / "radiographs.csv", dtype=str, keep_default_na=False)
    table = table.assign(exclude="", zone_top="0.4", zone_bottom="0.6", side="left").iloc[::-1]
    table.iloc[3, table.columns.get_loc("exclude")] = "no consent"
    table.to_csv(out / "radiographs.csv", index=False)
    write_dicom(folder / "new.dcm", RAMP8, 8, PatientID="19000101-0", SOPInstanceUID="1.2.826.9")
    import_folder(folder, labels, out, key)
    after = pd.read_csv(out / "radiographs.csv", dtype=str, keep_default_na=False).set_index("image_id")
    assert len(after) == 13 and after.exclude[table.image_id.iloc[3]] == "no consent"
    old = after.loc[table.image_id]
    assert (old.exclude != "").sum() == 1 and set(old.zone_top) == {"0.4"} and set(old.side) == {"left"}
    assert len(read_radiographs(out / "radiographs.csv", 16)) == 12


def test_two_outputs_with_one_key_do_not_mix(hospital, tmp_path):
    folder, labels, out, key = hospital
    import_folder(folder, labels, out, key, size=32)
    import_folder(folder, labels, tmp_path / "other" / "out", key, size=48)
    import_folder(folder, labels, out, key, size=48)
    assert {Image.open(path).size for path in (out / "images").iterdir()} == {(48, 48)}


def test_a_second_folder_joins_the_first_and_what_is_gone_goes(hospital, tmp_path):
    folder, labels, out, key = hospital
    import_folder(folder, labels, out, key)
    second = tmp_path / "second"
    second.mkdir()
    write_dicom(second / "x.dcm", RAMP8, 8, PatientID="77", SOPInstanceUID="1.2.826.77")
    (second / "labels.csv").write_text("patient_number,label\n77,NFF\n")
    import_folder(second, second / "labels.csv", out, key)
    assert len(pd.read_csv(out / "radiographs.csv")) == len(list((out / "images").iterdir())) == 13
    (folder / "Doe_Jane_0" / "20190203-0.dcm").unlink()
    import_folder(folder, labels, out, key)
    assert len(pd.read_csv(out / "radiographs.csv")) == len(list((out / "images").iterdir())) == 12


def test_no_picture_is_made_of_anybody_else(hospital):
    folder, labels, out, key = hospital
    write_dicom(folder / "unlabelled.dcm", RAMP8, 8, PatientID="19000101-77")
    write_dicom(folder / "slice.dcm", RAMP8, 8, PatientID="19000101-0", Modality="CT")
    write_dicom(folder / "raw.dcm", RAMP8, 8, PatientID="19000101-0", PresentationIntentType="FOR PROCESSING")
    flow = import_folder(folder, labels, out, key).set_index("what").images
    assert flow[["no label", "no radiograph (CT)", "raw data, not for presentation"]].tolist() == [1, 1, 1]
    assert len(list((out / "images").iterdir())) == 12


def test_one_patient_with_and_without_an_issuer_is_one_and_a_number_of_two_issuers_is_nobodys(hospital):
    folder, labels, out, key = hospital
    more = {"PatientID": "19000101-0", "IssuerOfPatientID": "NORD"}
    write_dicom(folder / "a.dcm", RAMP8, 8, SOPInstanceUID="1.2.826.50", **more)
    import_folder(folder, labels, out, key)
    assert pd.read_csv(out / "radiographs.csv").patient_id.nunique() == 6
    write_dicom(folder / "b.dcm", RAMP8, 8, SOPInstanceUID="1.2.826.51", **(more | {"IssuerOfPatientID": "SUED"}))
    flow = import_folder(folder, labels, out, key).set_index("what").images
    assert flow["a patient number that two issuers use"] == 4
    assert pd.read_csv(out / "radiographs.csv").patient_id.nunique() == 5


def test_names_of_old_systems_and_odd_files_stop_nothing(hospital):
    folder, labels, out, key = hospital
    data = (folder / "Doe_Jane_0" / "20190203-0.dcm").read_bytes()
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.dcm")).write_bytes(data.replace(b"1.2.826.0.0", b"1.2.826.0.7"))
    flow = import_folder(folder, labels, out, key).set_index("what").images
    assert flow["in the table: NFF"] + flow["in the table: AFF"] == 13
    key.write_bytes("ü".encode("latin-1") * 40)
    import_folder(folder, labels, out, key)


def test_what_could_not_be_read_is_tried_again(hospital, monkeypatch):
    folder, labels, out, key = hospital
    original = importing.read_image
    monkeypatch.setattr(importing, "read_image", lambda path: (_ for _ in ()).throw(OSError("network")))
    assert import_folder(folder, labels, out, key).set_index("what").images["unreadable"] == 12
    monkeypatch.setattr(importing, "read_image", original)
    import_folder(folder, labels, out, key)
    assert len(pd.read_csv(out / "radiographs.csv")) == 12


def test_what_the_files_say_is_counted_and_the_linkage_leads_back_to_their_pixels(hospital):
    folder, labels, out, key = hospital
    lying = {"PatientOrientation": ["H", "L"], "PixelSpacing": [0.2, 0.1], "BurnedInAnnotation": "YES"}
    write_dicom(folder / "a.dcm", RAMP16[:40], 16, PatientID="19000101-0", SOPInstanceUID="1.2.826.60", **lying)
    flow = import_folder(folder, labels, out, key, size=32).set_index("what").images
    assert flow["of these: DICOM says that something identifying is burned into the pixels"] == 1
    found = pd.read_csv(importing.linkage_of(key, out)).query("file == 'a.dcm'").iloc[0]
    assert (found.height, found.width, found.spacing) == (40, 64, "0.2 0.1")
    picture = read_image(out / "images" / f"{found['id']}.png").image
    assert picture.shape == (26, 32)
    x, y = moved([(0, 0)], found[list(TO_SOURCE)].to_numpy(float).reshape(2, 3))[0]
    assert (x, y) == (64, 0)  # the head lay to the right: the picture's upper left corner is the file's upper right one


def test_labels_may_not_lie_in_the_output(hospital):
    folder, labels, out, key = hospital
    out.mkdir()
    with pytest.raises(RadiographsError, match="lies in the output folder, where nobody's number is to be"):
        import_folder(folder, labels.rename(out / "labels.csv"), out, key)
