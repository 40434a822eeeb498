"""Arrays that a package ships as pickles: anything but numpy's own arrays is refused."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from layerweld.errors import DataError

_ALLOWED = frozenset(
    (module, name)
    for modules, names in (
        (("numpy",), ("ndarray", "dtype")),
        (("numpy.core.multiarray", "numpy._core.multiarray"), ("_reconstruct", "scalar")),
        (("numpy.core.numeric", "numpy._core.numeric"), ("_frombuffer",)),
        (("_codecs",), ("encode",)),
    )
    for module in modules
    for name in names
)


def load_arrays(file: Path) -> np.ndarray:
    """The array, or sequence of arrays, in a gzipped pickle.

    Raises:
        DataError: the pickle wants to call anything that numpy does not need for an array.
    """
    with gzip.open(file) as stream:
        return np.asarray(_OnlyNumpy(io.BytesIO(stream.read()), file).load())


class _OnlyNumpy(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, file: Path) -> None:
        super().__init__(stream)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(
                f"{self._file} is a pickle that wants to call {module}.{name}, so it is not read; "
                f"is its package the one pinned in requirements-benchmarks.txt?"
            )
        return super().find_class(module, name)
