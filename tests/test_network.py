"""Networks that fail between real machines: cut, flapping, slow, gone. The same bytes, and by name.

Each organisation is a network namespace; see :mod:`tests.private_network`.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from tests.deployed import Federation, Gateway, install_wheel, running
from tests.private_network import PrivateNetwork, private_network
from tests.tiny_sites import TinySites, make_sites

pytestmark = pytest.mark.network

_PORT = 8443
_STOPPED = 120  # seconds; after 60 Flower calls a node unreachable
_AWAY = 600
_MODEM = 7_000  # bytes a second: 56 kbit/s


@pytest.fixture(scope="module")
def network() -> Iterator[PrivateNetwork]:
    with ExitStack() as stack:
        try:
            network = stack.enter_context(private_network(["fed", "ash", "birch"]))
        except OSError as error:  # only root may make namespaces, and some kernels have none
            pytest.skip(f"network namespaces are not permitted here: {error}")
        yield network


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    three = make_sites(tmp_path_factory.mktemp("given"), ["query", "value"])
    return TinySites(three.base, three.nodes[:2], three.folder)


@pytest.fixture(scope="module")
def federation(
    network: PrivateNetwork, sites: TinySites, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federation]:
    installed = install_wheel(tmp_path_factory.mktemp("wheel"))
    gateway = Gateway(network.addresses["fed"], "0.0.0.0", _PORT)
    inside = {name: network.inside(name) for name in ("fed", "ash", "birch")}
    with running(tmp_path_factory.mktemp("machines"), sites, gateway, installed, inside) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(sites: TinySites, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of the same run within one process."""
    output = tmp_path_factory.mktemp("in-process") / "output"
    sites.run(output)
    return output


def read_results(output: Path) -> Any:
    return json.loads((output / "results.json").read_text())


def contributions(results: Any) -> list[Any]:
    """Tokens by site, of every group of every step: a site that counted twice would show."""
    return [group["tokens"] for method in results["methods"] for group in method["groups"]]


class Disturbed:
    """A run whose first step of two is solved, and what became of it.

    Args:
        federation: where it runs.
        name: of the run.
    """

    def __init__(self, federation: Federation, name: str) -> None:
        self._federation, self._name = federation, name
        self.said = ""

    def __enter__(self) -> "Disturbed":
        self._run = self._federation.run(self._name)
        self._federation.wait_for_steps(self._name)
        return self

    def end(self) -> None:
        """Wait until the run has ended well."""
        self.said = self._federation.finish(self._run)

    def __exit__(self, kind: str, *_: Any) -> None:
        if kind is None:
            if not self.said:
                self.end()
            return
        self._run.kill()  # it only follows the run
        self._run.communicate()
        self._federation.lw("coordinator", "stop", check=False)

    @property
    def output(self) -> Path:
        return self._federation.output(self._name)

    @property
    def waited_for(self) -> set[Any]:
        """Sites that the run has named."""
        lines = re.findall(r"^waiting for (.*) at the statistics of step 2: ", self.said, re.M)
        return {name for line in lines for name in line.split(", ")}

    def is_as(self, undisturbed: Path) -> bool:
        manifest = (self.output / "manifest.json").read_bytes()
        results = read_results(self.output)
        return manifest == (undisturbed / "manifest.json").read_bytes() and (
            contributions(results) == contributions(read_results(undisturbed))
        )


def test_a_link_as_slow_as_a_modem_that_loses_packets_changes_nothing(
    federation: Federation, network: PrivateNetwork, undisturbed: Path
) -> None:
    slow = network.slow("ash", delay=0.15, loss=0.02, rate=_MODEM)
    with Disturbed(federation, "slow") as run, slow:
        run.end()
    assert run.is_as(undisturbed)
    assert read_results(run.output)["ignored"] == {}  # nobody was asked twice for being slow


def test_a_link_that_is_cut_for_half_a_minute_changes_nothing(
    federation: Federation, network: PrivateNetwork, undisturbed: Path
) -> None:
    with Disturbed(federation, "cut") as run, network.cut("ash"):
        sleep(30)
    assert run.is_as(undisturbed)
    assert "ash" in run.waited_for


def test_a_link_that_comes_and_goes_every_five_seconds_changes_nothing(
    federation: Federation, network: PrivateNetwork, undisturbed: Path
) -> None:
    with Disturbed(federation, "flapping") as run:
        for _ in range(20):
            with network.cut("ash"):
                sleep(5)
            sleep(5)
    assert run.is_as(undisturbed)


def test_a_coordinator_that_is_out_of_reach_is_waited_for(
    federation: Federation, network: PrivateNetwork, undisturbed: Path
) -> None:
    with Disturbed(federation, "gone") as run, network.cut("fed"):
        sleep(_AWAY)
    assert run.is_as(undisturbed)
    assert run.waited_for == {"ash", "birch"}


def test_a_site_that_is_stopped_is_waited_for_by_name(
    federation: Federation, undisturbed: Path
) -> None:
    with Disturbed(federation, "stopped") as run:
        group = federation.child_of("ash", "supernode")
        os.killpg(group, signal.SIGSTOP)
        try:
            sleep(_STOPPED)
        finally:
            os.killpg(group, signal.SIGCONT)
    assert run.is_as(undisturbed)
    assert "waiting for ash at the statistics of step 2: its node is not reachable" in run.said
