"""What a site is told it would send is what it sends, to the byte."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from layerweld.deploy.egress import Egress, egress_lines, measure
from layerweld.report.results import RunResults
from layerweld.settings.run import RunSettings, read_run_settings
from layerweld.settings.sites import SiteEntry
from server.run import run as run_server
from tests.tiny_sites import TinySites, make_labelled_sites, with_whole_models

METHODS = ["com", "jacobi", "mats", "fisher", "adamerging", "prodistill", "ties"]
FEW_ROUNDS = {"merge.rounds": 3, "adamerging.rounds": 2, "prodistill.steps": 2}


@pytest.fixture(scope="module")
def lora_sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    return make_labelled_sites(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def whole_sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    """Sites that fine-tuned everything, with a head beside the model."""
    made = make_labelled_sites(tmp_path_factory.mktemp("whole"))
    for node in made.nodes:
        node["head"] = str(made.folder / f"{node['name']}-site/head.safetensors")
    return with_whole_models(made)


def settings_of(sites: TinySites, methods: str, **entries: Any) -> RunSettings:
    return read_run_settings(sites.settings().flat() | {"methods": methods} | FEW_ROUNDS | entries)


def said_of(sites: TinySites, settings: RunSettings) -> Egress:
    return measure(SiteEntry.model_validate(sites.nodes[0]), settings)


def run(
    sites: TinySites, settings: RunSettings, output: Path
) -> tuple[RunResults, Counter[Any], Counter[Any]]:
    """The run's results, and by type of message what the first site sent: bytes, and replies."""
    grid = sites.grid(settings)
    sent: Counter[str] = Counter()
    replies: Counter[str] = Counter()
    pull = grid.pull_messages

    def listening(message_ids: Any) -> Iterable[Message]:
        arrived = pull(message_ids)
        for reply in arrived:
            if reply.metadata.src_node_id == 1:
                kind = reply.metadata.message_type
                arrays = [a for r in reply.content.array_records.values() for a in r.values()]
                sent[kind] += sum(len(array.data) for array in arrays)
                replies[kind] += 1
        return arrived

    grid.pull_messages = listening  # type: ignore[method-assign]
    results = run_server(grid, settings, str(sites.base), output)
    return results, +sent, replies


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_what_is_said_is_what_the_first_of_three_sites_sends(
    kind: str, method: Any, request: Any, tmp_path: Path
) -> None:
    sites = request.getfixturevalue(f"{kind}_sites")
    settings = settings_of(sites, method)
    said = said_of(sites, settings)
    (upload,) = said.uploads
    results, sent, replies = run(sites, settings, tmp_path / "out")
    assert sent.pop("train.other_params", 0) == said.other_params_bytes
    assert (said.other_params_bytes > 0) == (kind == "whole")
    assert sent.total() == upload.num_bytes
    assert replies["evaluate.model"] == said.models_evaluated == 3
    merged = next(one for one in results.methods if one.name == method)
    assert merged.rounds == upload.rounds
    if merged.groups:
        of_one_round = [group.bytes_up["ash"] for group in merged.groups]
        assert of_one_round[-len(upload.group_bytes) :] == list(upload.group_bytes)


@pytest.mark.parametrize(
    "entries", [{"merge.products": "dense"}, {"merge.anchor": "mean"}], ids=["dense", "anchor"]
)
def test_settings_that_send_more_are_counted(
    lora_sites: TinySites, tmp_path: Path, entries: dict[str, str]
) -> None:
    settings = settings_of(lora_sites, "com", **entries)
    said = said_of(lora_sites, settings).uploads[0]
    assert said.num_bytes > said_of(lora_sites, settings_of(lora_sites, "com")).uploads[0].num_bytes
    assert ("ΔW" in said.sends) == ("merge.anchor" in entries)
    assert run(lora_sites, settings, tmp_path / "out")[1].total() == said.num_bytes


def test_metrics_that_go_along_are_counted(lora_sites: TinySites, tmp_path: Path) -> None:
    entries = {"merge.covariate-shift": "all", "evaluate.enabled": False}
    settings = settings_of(lora_sites, "com,mean,regmean", **entries)
    said = said_of(lora_sites, settings)
    results, _, replies = run(lora_sites, settings, tmp_path / "out")
    numbers = [g.covariate_shift["ash"] for method in results.methods for g in method.groups]
    assert (
        (len(numbers), replies["evaluate.model"]) == (said.shifts, said.models_evaluated) == (4, 0)
    )
    first = settings_of(lora_sites, "mean,com", **{"merge.covariate-shift": "first"})
    assert said_of(lora_sites, first).shifts == 0  # the first has no groups


def test_a_whole_model_and_metrics_have_lines_of_their_own(whole_sites: TinySites) -> None:
    entry = SiteEntry.model_validate(whole_sites.nodes[0])
    settings = settings_of(whole_sites, "com,fisher", **{"merge.covariate-shift": "first"})
    said = "\n".join(egress_lines(measure(entry, settings), entry))
    assert "fisher: " in said
    assert "to the server alone: F, F⊙ΔW" in said
    assert "of norms, biases and embeddings" in said
    assert "accuracy of 4 models on 18 held-out samples" in said
    assert "covariate shift: 8 numbers" in said
