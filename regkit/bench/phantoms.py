"""The phantom of ``regkit demo`` as a data set that needs no download: its truth is known."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

from regkit.bench.dataset import Case, Dataset, Request
from regkit.bench.openpairs import DIRECTIONS, MANIFEST, load_pairs
from regkit.core.errors import RegkitError
from regkit.core.jsontext import to_json
from regkit.demo import FILES, write_phantom
from regkit.synthesis.phantom import torso

_SPACING = 3.0  # mm, of the MR in plane
_SEEDS = ("0", "1", "2")
_IMAGES = ("fixed", "moving", "fixed_labels", "moving_labels", "landmarks")


def _cases(request: Request) -> list[Case]:
    if request.data is not None:
        raise RegkitError("the phantoms are drawn here; leave the folder of data out")
    folder = request.scratch / "phantoms"
    names = list(dict.fromkeys(_made(name, folder) for name in request.pairs or _SEEDS))
    made = Request(folder, names, request.directions, request.scratch)
    return load_pairs(folder, made, DATASET.default_directions)


def _made(text: str, folder: Path) -> str:
    """The name of a phantom's folder, which is complete or absent, made unless it is there."""
    match = re.fullmatch(r"(\d{1,9})(?:@(\d+(?:\.\d+)?))?", text)
    if not match:
        raise RegkitError(
            f"no phantom '{text}'; give the seed of one, such as 0, or seed@mm, such as 0@5, for voxels of "
            f"another size than {_SPACING:g} mm"
        )
    seed, spacing = int(match[1]), float(match[2] or _SPACING)
    name = f"{seed}" if spacing == _SPACING else f"{seed}@{spacing:g}"
    if (folder / name / MANIFEST).is_file():
        return name
    phantom = torso(seed, spacing)
    temporary = folder / f".{secrets.token_hex(6)}"
    manifest = {key: FILES[key] for key in _IMAGES} | {"labels": phantom.names}
    try:
        temporary.mkdir(parents=True)
        write_phantom(phantom, {key: temporary / file for key, file in FILES.items()})
        (temporary / MANIFEST).write_text(to_json(manifest) + "\n", encoding="utf-8")
        temporary.rename(folder / name)
    except OSError as error:
        raise RegkitError(f"could not write '{folder / name}': {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return name


DATASET = Dataset(
    name="phantom",
    title="made-up trunks, MR and CT, 14 organs and landmarks; needs no data",
    source="nowhere: they are drawn when needed",
    directions=DIRECTIONS,
    default_directions=1,
    cases=_cases,
    note=(
        "Phantoms of `regkit demo`, by seed: an MR (fixed) and a CT (moving) of one made-up trunk, some "
        "60 mm apart by their headers, with exact labels and landmarks. They show that a method works, not "
        "how well it does on patients."
    ),
)
