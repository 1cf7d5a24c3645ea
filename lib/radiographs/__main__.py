"""The command that imports a folder of DICOM files: see `lib.radiographs.importing`."""

import argparse
import sys
from pathlib import Path

from lib.radiographs.importing import KEY, TABLE, import_folder, linkage_of
from lib.radiographs.table import EXCLUDED, RadiographsError


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.radiographs", description="Make a table and pictures that name nobody of DICOM files."
    )
    parser.add_argument("folder", type=Path, help="walked through; links are not followed")
    parser.add_argument("--labels", type=Path, required=True, metavar="CSV",
                        help="columns label (AFF, NFF), and patient_number or accession")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for example data/hospital")
    parser.add_argument("--key", type=Path, default=KEY, metavar="FILE", help="made if missing (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="longest side of the pictures (default: %(default)s)")
    parser.add_argument("--hide-text", action="store_true", help="paint over what looks like writing")
    options = parser.parse_args(arguments)
    try:
        flow = import_folder(options.folder, options.labels, options.out, options.key, options.size, options.hide_text)
    except (RadiographsError, OSError) as error:
        print(f"lib.radiographs: {error}", file=sys.stderr)
        return 2 if isinstance(error, RadiographsError) else 1
    print(flow.to_string(index=False))
    print(f"\ntable: {options.out / TABLE}\nleft out, and why: {options.out / EXCLUDED}")
    linkage = linkage_of(options.key, options.out)
    print(f"which person and which file an id is: {linkage}. Keep it, and the key beside it, to yourself.")
    print(f"to check a run: python -m lib.checks.privacy runs/NAME --source {options.folder} --linkage {linkage}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
