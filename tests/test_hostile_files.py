"""Files that a stranger made: refused or read, never executed, never followed out of the folder."""

import contextlib
import json
import pickle
import re
import shutil
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from client import site
from client.data.batches import Preprocessor, load_tokenizer
from layerweld.errors import AdapterError, ConfigError
from layerweld.formats.adapters import read_adapter, read_fine_tuned
from layerweld.model.base_model import BaseModel, load_base
from layerweld.settings.run import RunSettings
from tests.tiny_encoders import TINY, save_model, save_tokenizer
from tests.tiny_peft import edit_config, new_model, save_base, train_adapter

RAN: list[Any] = []
WATCH = SimpleNamespace(on=False)


def _watch(event: Any, args: Any) -> None:
    if event in ("pickle.find_class", "exec", "os.system", "subprocess.Popen") and WATCH.on:
        # Flower, torch and pytest compile code of their own: only ours counts.
        if event == "exec" and "hostile" not in str(args[0]):
            return
        RAN.append((event, args))


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    """No pickle is opened and no code from a file runs while a test of this file does."""
    RAN.clear()
    WATCH.on = True
    yield
    WATCH.on = False
    assert RAN == []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return save_base("bert", tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    train_adapter(new_model("bert"), folder, ["query"], r=2)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "adapter")


def weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return exec, ("raise SystemExit('hostile')",)


def test_a_file_cut_at_any_of_200_places_is_refused(folder: Path, base: BaseModel) -> None:
    content = weights(folder).read_bytes()
    for cut in range(0, len(content), max(1, len(content) // 200)):
        weights(folder).write_bytes(content[:cut])
        with pytest.raises(AdapterError, match="copy or save the adapter again"):
            read_adapter(folder, base)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_a_number_and_never_a_crash(
    place: int, bit: int, folder: Path, trained: Path, base: BaseModel
) -> None:
    content = bytearray(weights(trained).read_bytes())
    content[place % len(content)] ^= 1 << bit
    weights(folder).write_bytes(content)
    with contextlib.suppress(AdapterError):
        read_adapter(folder, base)


def header(length: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text


A, B = "base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"


def one_tensor(**entry: Any) -> bytes:
    usual = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({A: usual | entry}).encode()
    return header(len(text), text) + b"\0" * 8


def two_tensors(second: str, shape: int, start: int, end: int) -> bytes:
    """The header's JSON is written by hand: no dictionary holds a key twice."""
    entry = '"{}": {{"dtype": "F32", "shape": [{}], "data_offsets": [{}, {}]}}'
    entries = (entry.format(A, 2, 0, 8), entry.format(second, shape, start, end))
    text = ("{" + ", ".join(entries) + "}").encode()
    return header(len(text), text) + b"\0" * max(8, end)


BOMBS = {
    "header of 2^63": header(2**63),
    "header of 2^64 - 1": header(2**64 - 1),
    "header of 4 GB": header(2**32, b"{" * 100),
    "no json": header(4, b"{{{{"),
    "deep json": header(200_000, b"[" * 200_000),
    "negative shape": one_tensor(shape=[-2]),
    "huge shape": one_tensor(shape=[2**62, 2**62]),
    "offsets beyond": one_tensor(data_offsets=[0, 2**40]),
    "offsets backwards": one_tensor(data_offsets=[8, 0]),
    "offsets that overlap": two_tensors(B, 2, 4, 12),
    "the same offsets": two_tensors(B, 2, 0, 8),
    "a tensor inside another": two_tensors(B, 1, 4, 8),
    "a hole": two_tensors(B, 2, 12, 20),
    "a key twice": two_tensors(A, 2, 8, 16),
    "unknown dtype": one_tensor(dtype="OBJECT"),
    "empty": b"",
    "pickle": pickle.dumps(Bomb()),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once_and_takes_no_memory(
    name: Any, folder: Path, base: BaseModel
) -> None:
    weights(folder).write_bytes(BOMBS[name])
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(AdapterError, match="damaged or cut short"):
        read_adapter(folder, base)
    assert time.process_time() - started < 1.0
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"])
def test_a_pickle_beside_or_instead_of_the_weights_is_never_opened(
    file: str, folder: Path, base: BaseModel
) -> None:
    (folder / file).write_bytes(pickle.dumps(Bomb()))
    read_adapter(folder, base)
    weights(folder).unlink()
    with pytest.raises(AdapterError):
        read_adapter(folder, base)


def test_a_model_folder_of_pickles_is_never_opened(tmp_path: Path, base: BaseModel) -> None:
    shutil.copytree(base.folder, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    (tmp_path / "model/pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterError, match="pickled weights are never opened"):
        read_fine_tuned(tmp_path / "model", base)
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        load_base(tmp_path / "model")


WRONG: tuple[Any, ...] = (None, 3, "x", [], {}, [1])


def damaged(good: Any) -> Iterator[Any]:
    """Whole files that hold something else, and ones of which one entry is of a wrong kind."""
    yield from WRONG
    yield from (good | {key: value} for key in good for value in WRONG)


def refusals(file: Path, load: Callable[..., Any]) -> list[ConfigError]:
    """What is said of each damaged content of a file that is not read all the same."""
    good, found = json.loads(file.read_text()), []
    for content in damaged(good):
        file.write_text(json.dumps(content))
        try:
            load()
        except ConfigError as error:
            found.append(error)
    return found


def test_a_tokenizer_with_any_entry_of_a_wrong_kind_is_read_or_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, pad_token="[PAD]", unk_token="[UNK]")
    found = refusals(tmp_path / "tokenizer.json", lambda: load_tokenizer(tmp_path))
    assert all(re.search(r"no readable tokenizer.*save_pretrained", str(e)) for e in found)
    causes = {type(error.__cause__) for error in found}
    assert {Exception, TypeError, AttributeError, KeyError} <= causes  # all that libraries raise


def test_a_model_with_any_setting_of_a_wrong_kind_is_read_or_refused(
    tmp_path: Path, base: BaseModel
) -> None:
    shutil.copytree(base.folder, tmp_path / "model")
    found = refusals(tmp_path / "model/config.json", lambda: load_base(tmp_path / "model"))
    said = (
        r"not a model that transformers itself can load|config\.json does not hold a JSON object"
        r"|lacks \d+ of its model's weights"
    )
    assert all(re.search(said, str(error)) for error in found)
    assert len(found) > 50


def test_an_image_processor_with_any_entry_of_a_wrong_kind_is_read_or_refused(
    tmp_path: Path,
) -> None:
    config = Dinov2Config(**TINY, image_size=28, patch_size=14)
    base = save_model(Dinov2Model, config, tmp_path)
    BitImageProcessorPil().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    found = refusals(file, lambda: Preprocessor(base, 16))
    said = r"no readable image processor|does not hold a JSON object"
    assert all(re.search(said, str(error)) for error in found)
    assert len(found) > 3


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path, base: BaseModel) -> None:
    shutil.copytree(base.folder, tmp_path / "model")
    (tmp_path / "model/hostile.py").write_text("raise SystemExit('hostile')")
    classes = {"AutoModel": "hostile.Hostile", "AutoConfig": "hostile.Hostile"}
    edit_config(tmp_path / "model", auto_map=classes)
    assert load_base(tmp_path / "model").fingerprint == base.fingerprint  # transformers' own class
    edit_config(tmp_path / "model", auto_map=classes, model_type="hostile")
    with pytest.raises(ConfigError, match="not a model that transformers itself can load"):
        load_base(tmp_path / "model")
    with pytest.raises(AdapterError):
        read_fine_tuned(tmp_path / "model", base)


def hostile_preparation(folder: Path, file: str, **entries: Any) -> BaseModel:
    """A folder whose tokenizer or image processor asks for the class in ``hostile.py``."""
    (folder / "hostile.py").write_text("raise SystemExit('hostile')")
    config = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps(config | entries))
    return load_base(folder)


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))


@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize("known", ["PreTrainedTokenizerFast", "HostileTokenizer"])
@pytest.mark.parametrize(
    "classes",
    [["hostile.Hostile", None], [None, "hostile.Hostile"], ["a/b--hostile.Hostile", None]],
)
def test_code_that_comes_with_a_tokenizer_is_never_run(
    tmp_path: Path, base: BaseModel, known: str, classes: list[str | None]
) -> None:
    shutil.copytree(base.folder, tmp_path / "model")
    save_tokenizer(tmp_path / "model", pad_token="[PAD]", unk_token="[UNK]")
    hostile = hostile_preparation(
        tmp_path / "model",
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": classes},
        tokenizer_class=known,
    )
    prepared = Preprocessor(hostile, 8)(["a red sea"])
    assert prepared["input_ids"].shape == (1, 3)  # by transformers' own class


@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize("key", ["AutoImageProcessor", "AutoFeatureExtractor"])
def test_code_that_comes_with_an_image_processor_is_never_run(tmp_path: Path, key: str) -> None:
    config = Dinov2Config(image_size=28, patch_size=14, **TINY)
    save_model(Dinov2Model, config, tmp_path)
    hostile = hostile_preparation(
        tmp_path,
        "preprocessor_config.json",
        auto_map={key: "hostile.Hostile"},
        image_processor_type="HostileImageProcessor",
    )
    with pytest.raises(ConfigError, match=r"image_processor\.save_pretrained"):
        Preprocessor(hostile, 8)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_link_to_another_file_does_not_show_what_is_in_it(
    file: str, folder: Path, base: BaseModel, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("Jane Doe, HIV+")
    (folder / file).unlink()
    (folder / file).symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterError, match="save the adapter again") as caught:
        read_adapter(folder, base)
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc", "a/b", "a\\b", ".hidden", "a\0", "a\n", "x" * 64, "é", "-a"],
)
def test_a_name_that_could_leave_a_folder_is_no_sites_name(name: Any) -> None:
    with pytest.raises(ConfigError, match="name"):
        site.site_of_node({"name": name, "data": "data.jsonl"}, RunSettings())
