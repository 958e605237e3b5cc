"""Files in and out: images, DICOM, warps, points, labels, and the record of a run."""
