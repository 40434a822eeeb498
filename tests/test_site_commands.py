"""What a site types: what it would send, its own say, one application and one process."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from client.site import site_of_node
from layerweld.deploy.site import explain_end, is_joined, joined, node_config, open_site
from layerweld.errors import CohortError, DataError, DeployError, InUseError
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import LEAST_SAMPLES
from tests.tiny_sites import TinySites, read_samples, write_samples
from tests.typed_commands import init_site, is_private, lw, things_of


def test_a_site_says_what_it_would_send(here: Path, sites: TinySites) -> None:
    result = init_site(sites)
    assert result.exit_code == 0, result.output
    assert "LoRA, rank 2, 4 layers" in result.output
    assert "18 samples, " in result.output
    # d_in 16: two groups of 16 * 17 / 2 floats; two layers each of rank 2 with 16 + 16 values.
    assert "com: 2 layer groups, 1.0 KiB the largest, 2.1 KiB a merge, 2 rounds;" in result.output
    assert "a run's own settings may send more" in result.output
    assert is_private(here / "hospital-a/hospital-a")
    assert (here / "hospital-a/hospital-a.pub").is_file()


def test_a_site_says_of_each_method_of_the_run_what_goes_where(
    here: Path, sites: TinySites
) -> None:
    run = here / "run.toml"
    run.write_text('methods = "chain, ties, adamerging"\n[adamerging]\nrounds = 9\n')
    said = init_site(sites, *things_of(sites), "--settings", run).output
    assert "com: 2 layer groups" in said
    assert "ties: 1.0 KiB a merge, 1 round; to the server alone: ΔW" in said
    # Once the update; nine times 4 bytes for each of 2 sites and 4 layers.
    assert "adamerging: 1.3 KiB a merge among 2 sites, 10 rounds; to the server: ΔW, H" in said
    assert "; to every other site: ΔW" in said
    assert "counts of samples and tokens" in said
    assert "own settings may send more" not in said


def test_a_site_has_its_own_say_on_how_few_samples_are_measured(
    here: Path, sites: TinySites
) -> None:
    with pytest.raises(CohortError, match=r"18 samples would be measured, .* min-samples is 19"):
        init_site(sites, *things_of(sites), "--min-samples", "19")
    assert not (here / "hospital-a").exists()
    init_site(sites)
    assert open_site(here / "hospital-a").entry.min_samples == LEAST_SAMPLES == 10


def test_what_a_site_does_not_say_has_the_default_of_the_settings(
    here: Path, sites: TinySites
) -> None:
    init_site(sites)
    entry, usual = open_site(here / "hospital-a").entry, RunSettings()
    columns = (usual.calibration.text_column, usual.calibration.label_column)
    assert (entry.text_column, entry.label_column) == columns
    assert entry.logger == usual.finetune.logger


def test_a_site_calls_its_columns_what_it_likes(here: Path, sites: TinySites) -> None:
    from flwr.common.config import parse_config_args

    renamed = [{"note of the day": s["text"]} for s in read_samples(sites.nodes[0]["data"])]
    write_samples(here / "notes.jsonl", renamed)
    things = (*things_of(sites)[:4], "--data", "notes.jsonl")
    with pytest.raises(DataError, match="or the site's own `text-column`"):
        init_site(sites, *things)
    made = init_site(sites, *things, "--text-column", "note of the day")
    assert "18 samples, " in made.output
    parsed = parse_config_args([node_config(open_site(here / "hospital-a").entry)])
    assert site_of_node(parsed, RunSettings()).text_column == "note of the day"


def test_a_sites_paths_are_absolute_and_flower_hands_them_on(here: Path, sites: TinySites) -> None:
    from flwr.common.config import parse_config_args

    init_site(sites)
    site = open_site(here / "hospital-a")
    parsed = parse_config_args([node_config(site.entry)])
    assert site_of_node(parsed, RunSettings()) == site.entry.model_copy(update={"watchdog": True})
    assert all(parsed[key].startswith("/") for key in ("data", "adapter", "base", "cache"))


def test_a_pinned_site_runs_one_application_and_no_other_kind_of_task(
    here: Path, sites: TinySites
) -> None:
    init_site(sites)
    site = open_site(here / "hospital-a")
    site.pin("0" * 64)
    runner = (site.folder / "bin/flwr-clientapp").read_text()
    assert "pinned.py" in runner
    assert "0" * 64 in runner
    assert "superexec.py" in (site.folder / "bin/flower-superexec").read_text()
    supernode = site.supernode("localhost:1", None, 2).command[0]
    assert f"pinned_supernode.py {'0' * 64}" in Path(supernode).read_text()
    for name in ("flwr-serverapp", "flwr-agentapp", "flwr-simulation"):
        assert subprocess.run([site.folder / "bin" / name], check=False).returncode == 1
    environment = site.supernode("localhost:1", None, 2).environment
    assert environment["PATH"].startswith(f"{site.folder}/bin:")


def test_a_site_that_others_may_write_into_does_not_join(here: Path, sites: TinySites) -> None:
    init_site(sites)
    site = open_site(here / "hospital-a")
    for place in (site.folder, here):
        before = place.stat().st_mode
        for mode in (0o770, 0o707, 0o777):
            place.chmod(mode)
            with pytest.raises(DeployError, match=f"chmod go-w {place}"):
                site.pin("0" * 64)
        place.chmod(before)
    site.pin("0" * 64)


def test_one_process_per_site(here: Path, sites: TinySites) -> None:
    init_site(sites)
    site = open_site(here / "hospital-a")
    assert not is_joined(site)
    with joined(site):
        assert is_joined(site)
        with pytest.raises(DeployError, match="joined already"):
            lw("site", "purge", "--folder", "hospital-a")


@pytest.mark.parametrize("error", [BlockingIOError, InUseError])
def test_an_error_of_a_joined_site_is_not_taken_for_a_second_process(
    here: Path, sites: TinySites, error: Any
) -> None:
    init_site(sites)
    site = open_site(here / "hospital-a")
    with pytest.raises(error, match="its own"), joined(site):
        raise error("its own")
    assert not is_joined(site)
    assert not (site.folder / "join.lock").exists()


def test_purge_deletes_runs_and_keeps_trained_adapters(here: Path, sites: TinySites) -> None:
    init_site(sites)
    cache = here / "hospital-a/cache"
    for folder in ("runs/1", "adapters/a"):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "x").write_bytes(bytes(2**20))
    assert "freed 1.0 MiB" in lw("site", "purge", "--folder", "hospital-a").output
    assert [path.name for path in cache.iterdir()] == ["adapters"]
    lw("site", "purge", "--folder", "hospital-a", "--adapters")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("missing", ["--model", "--adapter", "--data"])
def test_a_site_with_a_wrong_path_leaves_nothing_behind(
    here: Path, sites: TinySites, missing: str
) -> None:
    node = sites.nodes[0]
    options = {"--model": sites.base, "--adapter": node["adapter"], "--data": node["data"]}
    options[missing] = "nowhere"
    with pytest.raises(DeployError, match="nowhere does not exist"):
        init_site(sites, *(part for pair in options.items() for part in pair))
    assert not list(here.iterdir())


def test_a_path_that_flower_cannot_quote_is_refused(here: Path, sites: TinySites) -> None:
    data = here / 'a"b.jsonl'
    data.write_text('{"text": "a"}\n')
    with pytest.raises(DeployError, match="rename it"):
        init_site(sites, "--model", sites.base, "--fine-tune", "--data", data)


def test_adapter_and_fine_tuning_exclude_each_other(here: Path, sites: TinySites) -> None:
    node = sites.nodes[0]
    both = ("--model", sites.base, "--data", node["data"], "--adapter", "x", "--fine-tune")
    assert init_site(sites, *both).exit_code == 2


def test_what_flower_prints_when_a_key_is_refused_is_explained() -> None:
    assert "not registered" in explain_end("[code: 2004] Failed to activate SuperNode.")
    assert explain_end("nothing to see") == ""
