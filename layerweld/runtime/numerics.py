"""What the bits of a computation depend on besides its inputs: fixed where it can be, and recorded.

The same settings give the same bits on machines of one kind: the same processor, packages and
number of threads, and the same values of the variables named here. On another kind the sums within
a matrix product are taken in another order, and the last digits differ.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading
from pathlib import Path

import torch

from layerweld.errors import ConfigError

_PREFIXES = (
    "ATEN_", "CUBLAS_", "DNNL_", "GLIBC_TUNABLES", "GOMP_", "KMP_", "MKL_", "NVIDIA_TF32_OVERRIDE",
    "OMP_", "ONEDNN_", "OPENBLAS_",
)  # fmt: skip
_OVERRULED = frozenset(
    {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_DYNAMIC", "MKL_DYNAMIC"}
)
"""Variables that :func:`use_threads` overrules."""
_OPENMP = re.compile(r"/\S*lib(?:gomp|iomp5|omp)\b[^/\s]*\.so\S*")
_VERSIONS = {"mkl": r"Math Kernel Library Version (\S+)", "onednn": r"MKL-DNN v(\S+)"}


def use_threads(count: int) -> None:
    """Compute with exactly this many threads in this process, however busy the machine is.

    With ``OMP_DYNAMIC`` OpenMP would take fewer when others compute too, and give other bits.

    Raises:
        ConfigError: this machine does not give a process that many.
    """
    if count > (os.cpu_count() or 1):
        _require_room_for(count)
    for runtime in _openmp_runtimes():
        runtime.omp_set_dynamic(0)
        limit = runtime.omp_get_thread_limit()
        if limit < count:
            raise _too_many(count, f"OMP_THREAD_LIMIT allows {limit}")
    torch.set_num_threads(count)


def numeric_environment(device: str = "cpu") -> dict[str, str]:
    """What decides the last digits here, by name; the variables as ``$NAME``.

    Args:
        device: ``calibration.device`` of the run.
    """
    built = torch.__config__.show()
    found = {name: re.search(pattern, built) for name, pattern in _VERSIONS.items()}
    variables = {
        f"${name}": value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) and name not in _OVERRULED
    }
    return {
        "cpu": _processor(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        **{name: match[1] for name, match in found.items() if match},
        "libc": " ".join(platform.libc_ver()),
        **_accelerator(device),
        **variables,
    }


def _accelerator(device: str) -> dict[str, str]:
    if device == "cpu" or not torch.cuda.is_available():
        return {}
    number = torch.device(device).index if device.startswith("cuda:") else None
    return {"gpu": torch.cuda.get_device_name(number), "cuda": torch.version.cuda or ""}


def _processor() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        about = ""
    named = re.search(r"^model name\s*:\s*(.+)$", about, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _openmp_runtimes() -> list[ctypes.CDLL]:
    """The OpenMP runtimes that this process has loaded; torch brings its own."""
    try:
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [ctypes.CDLL(path) for path in sorted(set(_OPENMP.findall(loaded)))]


def _require_room_for(count: int) -> None:
    """Start as many threads as OpenMP will: if one failed there, the process would die silently.

    Raises:
        ConfigError: the operating system refuses one.
    """
    ending = threading.Event()
    begun: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=ending.wait, daemon=True)
            thread.start()
            begun.append(thread)
    except RuntimeError:
        raise _too_many(count, f"it refuses a process more than {len(begun)}") from None
    finally:
        ending.set()
        for thread in begun:
            thread.join()


def _too_many(count: int, why: str) -> ConfigError:
    return ConfigError(
        f"calibration.threads = {count} is more than this machine gives a process: {why}; all "
        f"machines of a run need the same number, so choose one that every machine gives"
    )
