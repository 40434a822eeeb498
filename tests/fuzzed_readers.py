"""A process that reads damaged files: ``python -m tests.fuzzed_readers FOLDER SEED COUNT [NAME…]``.

It writes a line of JSON for each reader. What it must never do is die, hang, or grow: whoever
started it watches that. Before each file it writes down which one it reads.
"""

import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pandas as pd
import pyarrow as arrow
import torch
from PIL import Image
from torch import Tensor

from client.data.batches import Preprocessor
from client.data.samples import Dataset, read_dataset
from client.handlers.measure import _read_score as read_score
from client.store import MergedStep, SiteStore, StepHashes
from client.training.heads import ClassifierHead, load_head
from layerweld.deploy.coordinator import check_file, create, open_coordinator
from layerweld.deploy.keys import make_key, read_public_key
from layerweld.deploy.members import members
from layerweld.deploy.site import Site, open_site
from layerweld.deploy.site import create as create_site
from layerweld.deploy.validity import renew
from layerweld.errors import LayerweldError, MemoryShortageError
from layerweld.formats.adapters import Adapter, read_adapter, read_fine_tuned
from layerweld.model.base_model import load_base
from layerweld.report.comparison.results import Entry
from layerweld.runtime.run_state import Recorder, RunState, read_state
from layerweld.settings.run import CalibrationSettings, RunSettings
from layerweld.settings.sites import SiteEntry, read_run_file
from layerweld.updates.update import LowRankUpdate
from server.kept_results import KeptResults
from tests.damage import (
    damaged_bytes,
    damaged_json,
    damaged_tensors,
    damaged_toml,
    put_something_else,
)
from tests.fuzzed_journals import journal_header, journal_round
from tests.tiny_encoders import save_image_base, save_text_base
from tests.tiny_peft import new_model, save_base, train_adapter
from tests.tiny_sites import write_samples

LONGEST = 5.0  # seconds that one file may take
SAMPLES = [{"text": f"sample {i}, with é", "label": "ab"[i % 2]} for i in range(20)]
ANY = CalibrationSettings(max_unreadable=1.0)


def reader(file: Path) -> Callable[..., Dataset]:
    return lambda: read_dataset(file, ANY, reads_images=False)


def jsonl(folder: Path) -> tuple[Any, ...]:
    file = folder / "data.jsonl"
    write_samples(file, SAMPLES)
    return file, damaged_bytes, reader(file)


def csv(folder: Path) -> tuple[Any, ...]:
    file = folder / "data.csv"
    pd.DataFrame(SAMPLES).to_csv(file, index=False)
    return file, damaged_bytes, reader(file)


def parquet(how: dict[Any, Any], kind: str | None = None) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Any, ...]:
        file = folder / "data.parquet"
        frame = pd.DataFrame(SAMPLES)
        (frame.astype({"label": kind}) if kind else frame).to_parquet(file, **how)
        return file, damaged_bytes, reader(file)

    return made


def saved_dataset(damage: Callable[..., bytes], of: str) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Any, ...]:
        table = arrow.table({key: [sample[key] for sample in SAMPLES] for key in SAMPLES[0]})
        with arrow.ipc.new_stream(str(folder / "data.arrow"), table.schema) as stream:
            stream.write_table(table)
        (folder / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data.arrow"}]})
        )
        return folder / of, damage, reader(folder)

    return made


def image(suffix: str, **how: Any) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., None]]:
        images = folder / "images"
        images.mkdir()
        noise = random.Random(1).randbytes(3 * 40 * 30)
        Image.frombytes("RGB", (40, 30), noise).save(images / f"a.{suffix}", **how)
        base = save_image_base(folder / "base")
        prepare = Preprocessor(base, 8)

        def read() -> None:
            prepare(read_dataset(images, ANY, reads_images=True).inputs)

        return images / f"a.{suffix}", damaged_bytes, read

    return made


def adapter(of: str, damage: Callable[..., bytes]) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., Adapter]]:
        base = save_base("bert", folder / "base")
        patterns: dict[str, Any] = {
            "rank_pattern": {"value": 2},
            "alpha_pattern": {r"^.*\.0\..*query": 3},
        }
        train_adapter(new_model("bert"), folder / "a", r".*\.(query|value)", **patterns)
        return folder / "a" / of, damage, lambda: read_adapter(folder / "a", base)

    return made


def checkpoint(of: str, damage: Callable[..., bytes]) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., Adapter]]:
        base = save_base("llama", folder / "base")
        model = new_model("llama")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1
        model.save_pretrained(folder / "tuned", max_shard_size="8KB")
        file = next((folder / "tuned").glob(of))
        return file, damage, lambda: read_fine_tuned(folder / "tuned", base)

    return made


def base_model(of: str, damage: Callable[..., bytes]) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., None]]:
        save_text_base(folder / "base")
        (folder / "base/generation_config.json").write_text('{"max_length": 20}')

        def read() -> None:
            base = load_base(folder / "base")
            Preprocessor(base, 8)(["the red", "very very cold a"])

        return folder / "base" / of, damage, read

    return made


def image_processor(
    folder: Path,
) -> tuple[Path, Callable[..., bytes], Callable[..., dict[str, Tensor]]]:
    from transformers import BitImageProcessorPil

    base = save_image_base(folder / "base")
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=28).save_pretrained(base.folder)
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    read = lambda: Preprocessor(base, 8)([folder / "a.png"])  # noqa: E731
    return base.folder / "preprocessor_config.json", damaged_json, read


def head(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., ClassifierHead]]:
    file = folder / "head.safetensors"
    ClassifierHead(4, ["a", "b"]).save(file)
    return file, damaged_tensors, lambda: load_head(file)


def run_file(
    folder: Path,
) -> tuple[Path, Callable[..., bytes], Callable[..., tuple[RunSettings, tuple[SiteEntry, ...]]]]:
    file = folder / "run.toml"
    file.write_text(
        'base = "base"\nmin-sites = 2\n[merge]\nridge = 0.01\n[calibration]\nsamples = 50\n'
        '[[sites]]\nname = "a"\ndata = "data.jsonl"\n[[sites]]\nname = "b"\ndata = "b.jsonl"\n'
    )
    return file, damaged_toml, lambda: read_run_file(file)


def site_file(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., Site]]:
    create_site(folder / "site", SiteEntry(name="ash", data="/data.jsonl"), b"")
    return folder / "site/site.toml", damaged_toml, lambda: open_site(folder / "site")


def coordinator(
    of: str, damage: Callable[..., bytes], read: Callable[..., Any]
) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., Any]]:
        file = check_file(name="hub", host="localhost", port=9000, superlink_port=9001)
        opened = create(folder, file, "/base")
        (opened.sites / "ash.json").write_text('{"name": "ash", "key": "SHA256:x", "node": "7"}')
        return opened.folder / of, damage, lambda: read(opened.folder)

    return made


def public_key(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., bytes]]:
    make_key(folder / "key")
    return folder / "key.pub", damaged_bytes, lambda: read_public_key(folder / "key.pub")


def state(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., RunState | None]]:
    (folder / "out").mkdir()
    Recorder(folder / "out").write(RunState(notes=("a",)))
    return folder / "out/state.json", damaged_json, lambda: read_state(folder / "out")


def site_store(of: str) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., None]]:
        store = SiteStore(folder / "store")
        hashes = StepHashes("a", "b", "c")
        updates = {"layer": LowRankUpdate(torch.ones(2, 1), torch.ones(1, 2))}
        store.save_step(0, MergedStep(hashes, updates))
        store.save_hidden(1, "p", [torch.ones(2, 3)])
        store.save_updates("h", {"ash": updates})
        store.save_other_params({"norm": torch.ones(3)})

        def read() -> None:
            store.step_hashes(0)
            store.load_step(0, "c")
            store.load_hidden(1, "p")
            store.load_updates("h")
            store.load_other_params()

        return folder / "store" / f"{of}.safetensors", damaged_tensors, read

    return made


def score(
    folder: Path,
) -> tuple[Path, Callable[..., bytes], Callable[..., tuple[float, int] | None]]:
    file = folder / "score.json"
    file.write_text("[0.5, 20]")
    return file, damaged_json, lambda: read_score(file)


def kept_method(folder: Path) -> tuple[Path, Callable[..., bytes], Callable[..., Entry | None]]:
    methods = KeptResults(folder / "results")
    file = methods._file("com", {})
    file.parent.mkdir()
    file.write_text('{"result": {"name": "com"}, "seed": 0}')
    return file, damaged_json, lambda: methods.find("com", {})


def run_settings(folder: Path) -> RunSettings:
    return open_coordinator(folder).settings()


READERS = {
    "data.jsonl": jsonl,
    "data.csv": csv,
    "data.parquet": parquet({}),
    "data.parquet, gzip": parquet({"compression": "gzip"}),
    "data.parquet, zstd": parquet({"compression": "zstd", "use_dictionary": False}),
    "data.parquet, categories": parquet({"compression": None}, "category"),
    "datasets, state.json": saved_dataset(damaged_json, "state.json"),
    "datasets, arrow": saved_dataset(damaged_bytes, "data.arrow"),
    "image, png": image("png"),
    "image, jpeg": image("jpg"),
    "image, progressive jpeg": image("jpg", progressive=True),
    "image, webp": image("webp"),
    "image, bmp": image("bmp"),
    "adapter_config.json": adapter("adapter_config.json", damaged_json),
    "adapter_model.safetensors": adapter("adapter_model.safetensors", damaged_tensors),
    "checkpoint, config.json": checkpoint("config.json", damaged_json),
    "checkpoint, index.json": checkpoint("model.safetensors.index.json", damaged_json),
    "checkpoint, shard": checkpoint("model-00001-of-*.safetensors", damaged_tensors),
    "base, config.json": base_model("config.json", damaged_json),
    "base, model.safetensors": base_model("model.safetensors", damaged_tensors),
    "base, generation_config.json": base_model("generation_config.json", damaged_json),
    "base, tokenizer.json": base_model("tokenizer.json", damaged_json),
    "base, tokenizer_config.json": base_model("tokenizer_config.json", damaged_json),
    "base, preprocessor_config.json": image_processor,
    "head.safetensors": head,
    "run.toml": run_file,
    "site.toml": site_file,
    "coordinator.toml": coordinator("coordinator.toml", damaged_toml, open_coordinator),
    "coordinator, run.toml": coordinator("run.toml", damaged_toml, run_settings),
    "coordinator, site": coordinator(
        "sites/ash.json", damaged_json, lambda folder: members(open_coordinator(folder))
    ),
    "certificate": coordinator(
        "certificates/ca.crt", damaged_bytes, lambda folder: renew(open_coordinator(folder))
    ),
    "private key": coordinator(
        "certificates/ca.key", damaged_bytes, lambda folder: renew(open_coordinator(folder))
    ),
    "public key": public_key,
    "journal, run.json": journal_header,
    "journal, earlier round": journal_round("round-00000.safetensors", damaged_tensors),
    "journal, last round": journal_round("round-00001.safetensors", damaged_tensors),
    "journal, hash": journal_round("round-00000.sha256", damaged_bytes),
    "state.json": state,
    "site's step": site_store("step-0000"),
    "site's hidden states": site_store("hidden-0001"),
    "site's updates": site_store("updates"),
    "site's other parameters": site_store("other_params"),
    "site's score": score,
    "comparison, kept method": kept_method,
}  # fmt: skip


def fault(error: BaseException, file: Path) -> str:
    """What is wrong with how a reader ended; empty where it refused the file as it should."""
    if not isinstance(error, LayerweldError):
        return f"{type(error).__name__}: {error}"[:300]
    text = str(error)
    if "\n" in text or not text.isprintable() or len(text) > 1500:
        return f"no line of text: {text[:300]!r}"
    names = (file.name, str(file.parent))
    if not isinstance(error, MemoryShortageError) and not any(name in text for name in names):
        return f"does not name the file: {text[:300]}"
    return "exit code 1" if error.exit_code == 1 else ""


def fuzz(name: str, folder: Path, seed: str, count: int, trace: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    file, damage, read = READERS[name](folder)
    whole = file.read_bytes()
    read()  # the whole one is read
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {
        "reader": name,
        "tried": 0,
        "read": 0,
        "refused": 0,
        "broken": [],
        "slowest": 0.0,
    }
    for number in range(count):
        trace.write_text(f"{name}, seed {seed}, number {number}")
        draw = random.Random(f"{name} {seed} {number}")
        if number % 10 == 9:
            put_something_else(file, draw)
        else:
            file.write_bytes(damage(whole, draw))
        faulthandler.dump_traceback_later(60, exit=True)
        started = time.process_time()
        found["tried"] += 1
        try:
            read()
            found["read"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong = fault(error, file)
            found["refused"] += not wrong
            if wrong:
                found["broken"].append(f"{number}: {wrong}")
        took = time.process_time() - started
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        faulthandler.cancel_dump_traceback_later()
        found["slowest"] = max(found["slowest"], round(took, 3))
        if took > LONGEST:
            found["broken"].append(f"{number}: took {took:.1f} s")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["grown"] = (after - before) // 1024
    shutil.rmtree(folder)
    return found


def main() -> None:
    folder, seed, count, *names = sys.argv[1:]
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries in C and Rust say what they think of a file
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for number, name in enumerate(names or READERS):
        found = fuzz(name, Path(folder) / str(number), seed, int(count), Path(folder) / "trace")
        print(json.dumps(found), file=report, flush=True)


if __name__ == "__main__":
    main()
