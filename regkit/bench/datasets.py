"""The data sets by name."""

from __future__ import annotations

from regkit.bench import learn2reg, learn2reg_ct, mmwhs, openpairs, phantoms
from regkit.bench.dataset import Dataset
from regkit.core.errors import RegkitError

DATASETS: dict[str, Dataset] = {
    module.DATASET.name: module.DATASET for module in (learn2reg, learn2reg_ct, mmwhs, openpairs, phantoms)
}


def dataset(name: str) -> Dataset:
    """The data set of a name.

    Raises:
        RegkitError: if there is none.
    """
    if name not in DATASETS:
        raise RegkitError(f"no data set named '{name}'; available: {', '.join(DATASETS)}")
    return DATASETS[name]
