"""DICOM files that several tests write."""

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

SIDE = 64
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
RAMP8 = np.rint(RAMP * 255).astype(np.uint8)
RAMP16 = np.rint(RAMP * 65535).astype(np.uint16)


def write_dicom(path, stored, bits, photometric="MONOCHROME2", compress=None, **tags):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", pydicom.uid.generate_uid()
    ds.PatientName, ds.PatientID = "Doe^Jane", "19000101-1234"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = stored.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW" if stored.itemsize == 2 else "OB"
    for name, value in tags.items():
        setattr(ds, name, value)
    if compress:
        ds.compress(compress, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)
    return path
