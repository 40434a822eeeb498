"""The same number of threads gives the same bits here; what else may change them is recorded."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from layerweld.errors import ConfigError
from layerweld.runtime import numerics
from layerweld.runtime.numerics import numeric_environment, use_threads
from layerweld.settings.run import validate_settings

KERNELS = """
import hashlib, json, sys, torch
from layerweld.runtime.numerics import numeric_environment, use_threads
use_threads(2)
generator = torch.Generator().manual_seed(0)
rows = torch.randn(3000, 384, generator=generator)
gram = (rows.T @ rows).double()
solved = torch.linalg.solve(gram + torch.eye(384), gram.roll(1, 0))
layer = torch.nn.functional.scaled_dot_product_attention(*(rows[None, None, :512, :64],) * 3)
made = (rows @ rows.T[:, :99], gram, solved, layer)
digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in made))
print(json.dumps([digest.hexdigest(), numeric_environment()]))
"""


def computed(**variables: Any) -> Any:
    """The bits of a few kernels in a process of its own, and what it records."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_", "ATEN_"))}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS],
        env=clean | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plain() -> Any:
    return computed()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_the_number_of_threads_overrules_changes_no_bit_and_is_not_recorded(
    plain: Any,
) -> None:
    overruled = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    assert computed(**overruled, OMP_DYNAMIC="true", MKL_DYNAMIC="true") == plain
    assert computed() == plain


def test_what_may_change_bits_is_recorded(plain: Any) -> None:
    changing = {
        "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
    }  # fmt: skip
    _, recorded = computed(**changing)
    differ = {name for name in {*recorded, *plain[1]} if recorded.get(name) != plain[1].get(name)}
    assert differ == {*(f"${name}" for name in changing), "kernels"}
    assert {"cpu", "kernels", "threads", "torch", "libc"} <= recorded.keys()


def test_openmp_takes_no_fewer_threads_where_others_compute_too(threads: None) -> None:
    runtimes = numerics._openmp_runtimes()
    assert runtimes
    for runtime in runtimes:
        runtime.omp_set_dynamic(1)
    use_threads(2)
    assert [runtime.omp_get_dynamic() for runtime in runtimes] == [0] * len(runtimes)
    assert torch.get_num_threads() == 2
    assert numeric_environment()["threads"] == "2"


@pytest.mark.parametrize("count", [257, 100_000, 10**12, 0, -1])
def test_a_number_of_threads_that_no_machine_has_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=r"calibration\.threads"):
        validate_settings({"calibration": {"threads": count}})


def test_a_number_that_this_machine_does_not_give_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    start, begun = numerics.threading.Thread.start, []  # type: ignore[attr-defined]

    def refuse(thread: Any) -> None:
        begun.append(thread)
        if len(begun) > 20:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(numerics.threading.Thread, "start", refuse)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"refuses a process more than 20; all machines"):
        use_threads(64)
    assert not any(thread.is_alive() for thread in begun)


def test_a_limit_of_openmp_is_refused_by_its_name() -> None:
    script = "from layerweld.runtime.numerics import use_threads; use_threads(2)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"OMP_THREAD_LIMIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OMP_THREAD_LIMIT allows 1" in done.stderr


def test_as_many_threads_as_the_setting_allows_compute(threads: None) -> None:
    """They once ended the process by a segmentation fault."""
    script = "import torch; from layerweld.runtime.numerics import use_threads; use_threads(256);"
    done = subprocess.run(
        [sys.executable, "-c", f"{script} print(float(torch.ones(2**22).sum()))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(float(2**22)), done.stderr
