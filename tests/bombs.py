"""A process that reads small files that claim to be large: ``python -m tests.bombs FOLDER``.

It writes a line of JSON for each: how it ended, in which time, and by how much it has grown.
"""

import json
import os
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow as arrow
import pyarrow.parquet as parquet
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from client.data.batches import Preprocessor
from client.data.images import read_image
from client.data.records import LONGEST_ROW
from client.data.samples import Dataset, read_dataset
from client.training.heads import ClassifierHead, load_head
from layerweld.errors import ConfigError
from layerweld.formats import layer_patterns
from layerweld.formats.adapters import Adapter, read_adapter
from layerweld.model.base_model import BaseModel, load_base
from layerweld.untrusted.documents import read_json, read_toml
from tests.fuzzed_readers import ANY, fault
from tests.tiny_encoders import save_image_base
from tests.tiny_peft import edit_config, new_model, save_base, train_adapter

SAMPLE = b'{"text": "a"}\n'


def reader(file: Path) -> tuple[Path, Callable[..., Dataset]]:
    return file, lambda: read_dataset(file, ANY, reads_images=False)


def sparse(file: Path, start: bytes, size: int, end: bytes = b"") -> Path:
    """A file of any size that takes no place on the disk."""
    with file.open("wb") as opened:
        opened.write(start)
        opened.truncate(size)
        opened.seek(size)
        opened.write(end)
    return file


def long_line(folder: Path) -> tuple[Any, ...]:
    return reader(sparse(folder / "data.jsonl", SAMPLE, 1_000_000_000, b"\n" + SAMPLE))


def long_array(folder: Path) -> tuple[Any, ...]:
    return reader(sparse(folder / "data.jsonl", b"[", 1_000_000_000, b"]"))


def many_brackets(folder: Path) -> tuple[Any, ...]:
    file = folder / "data.jsonl"
    file.write_bytes(SAMPLE + b'{"text": [' + b"[]," * (LONGEST_ROW // 3 - 10) + b"[]]}")
    return reader(file)


def long_field(folder: Path) -> tuple[Any, ...]:
    file = folder / "data.csv"
    file.write_bytes(b"text\na\n" + b"x" * 100_000_000 + b"\nb\n")
    return reader(file)


def open_quote(folder: Path) -> tuple[Any, ...]:
    file = folder / "data.csv"
    file.write_bytes(b'text\na\n"' + (b"line " * 200 + b"\n") * 50_000)
    return reader(file)


def many_columns(folder: Path) -> tuple[Any, ...]:
    file = folder / "data.csv"
    file.write_bytes(b"text" + b",x" * 1_000_000 + b"\n" + (b"a" + b"," * 1_000_000 + b"\n") * 3)
    return reader(file)


def many_keys(folder: Path) -> tuple[Any, ...]:
    file = folder / "data.jsonl"
    keys = ", ".join(f'"{i}": 0' for i in range(1_000_000))
    file.write_text(f'{{"text": "a", {keys}}}\n' * 2)
    return reader(file)


def packed_text(folder: Path) -> tuple[Any, ...]:
    table = arrow.table({"text": ["x" * 50_000_000 + str(i) for i in range(8)]})
    parquet.write_table(table, folder / "data.parquet", compression="zstd", use_dictionary=False)
    return reader(folder / "data.parquet")


def packed_dictionary(folder: Path) -> tuple[Any, ...]:
    text = arrow.DictionaryArray.from_arrays(
        arrow.array([0] * 200_000, arrow.int32()), arrow.array(["x" * 900_000])
    )
    parquet.write_table(arrow.table({"text": text}), folder / "data.parquet", compression="zstd")
    return reader(folder / "data.parquet")


def lying_footer(folder: Path) -> tuple[Any, ...]:
    """The footer says a thousand bytes, where the page has 300 million."""

    def varint(value: int, size: int = 0) -> bytes:
        digits: list[int] = []
        while value or len(digits) < size:
            value, digits = value >> 7, [*digits, value & 127]
        return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])

    def claimed() -> Any:
        return parquet.read_metadata(file).row_group(0).column(0).total_uncompressed_size

    file = folder / "data.parquet"
    table = arrow.table({"text": ["x" * 300_000_000]})
    parquet.write_table(table, file, compression="zstd", use_dictionary=False)
    found = varint(2 * claimed())
    file.write_bytes(file.read_bytes().replace(found, varint(2000, len(found))))
    assert claimed() == 1000
    return reader(file)


def compressed_arrow(folder: Path) -> tuple[Any, ...]:
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    table = arrow.table({"text": ["x" * 100_000_000]})
    packed = arrow.ipc.IpcWriteOptions(compression="zstd")
    with arrow.ipc.new_stream(str(folder / "data.arrow"), table.schema, options=packed) as stream:
        stream.write_table(table)
    return reader(folder)


def many_nulls(folder: Path) -> tuple[Any, ...]:
    nothing = arrow.nulls(20_000_000, arrow.string())
    parquet.write_table(arrow.table({"text": nothing}), folder / "data.parquet")
    return reader(folder / "data.parquet")


def other_column(folder: Path) -> tuple[Any, ...]:
    table = arrow.table({"text": ["a"] * 8, "other": ["x" * 50_000_000 + str(i) for i in range(8)]})
    parquet.write_table(table, folder / "data.parquet", compression="zstd", use_dictionary=False)
    return reader(folder / "data.parquet")


def nested_text(folder: Path) -> tuple[Any, ...]:
    table = arrow.table({"text": [[["x"] * 1000] * 1000]})
    parquet.write_table(table, folder / "data.parquet", compression="zstd")
    return reader(folder / "data.parquet")


def png(width: int, height: int, *chunks: tuple[bytes, bytes], rows: int | None = None) -> bytes:
    """A grey PNG of one colour, which takes a thousandth of its pixels, and other chunks."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checked)

    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    packed = b"".join(packer.compress(row) for _ in range(rows or height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    others = b"".join(chunk(kind, content) for kind, content in chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + others
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
    )


def image(content: Callable[..., Any], name: str = "a.png") -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., Image.Image]]:
        (folder / name).write_bytes(content())
        return folder / name, lambda: read_image(folder / name)

    return made


def huge_batch(folder: Path) -> tuple[Path, Callable[..., dict[str, Tensor]]]:
    base = save_image_base(folder / "base")
    content = png(8192, 8192)
    files = [folder / f"{i}.png" for i in range(8)]
    for file in files:
        file.write_bytes(content)
    return folder, lambda: Preprocessor(base, 8)(files)


def packed_texts() -> bytes:
    packed = b"x\0\0" + zlib.compress(bytes(50_000_000), 9)
    return png(10, 10, *[(b"zTXt", packed)] * 50)


def packed_profile() -> bytes:
    return png(10, 10, (b"iCCP", b"x\0\0" + zlib.compress(bytes(500_000_000), 9)))


def huge_webp() -> bytes:
    # VP8X: a canvas of 16384 x 16384 that holds next to nothing.
    size = struct.pack("<I", 16383)[:3]
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + size * 2
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def many_scans() -> bytes:
    from io import BytesIO

    made = BytesIO()
    Image.new("L", (4000, 4000)).save(made, "jpeg", progressive=True)
    content = made.getvalue()
    scan = content.rindex(b"\xff\xda")
    return content[:scan] + content[scan:-2] * 5000 + content[-2:]


def scaled_up(folder: Path) -> tuple[Path, Callable[..., Preprocessor]]:
    from transformers import BitImageProcessorPil

    base = save_image_base(folder / "base")
    BitImageProcessorPil(size={"shortest_edge": 100_000}).save_pretrained(base.folder)
    return base.folder / "preprocessor_config.json", lambda: Preprocessor(base, 8)


def adapter(change: Callable[..., None]) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., Adapter]]:
        base = save_base("bert", folder / "base")
        train_adapter(new_model("bert"), folder / "a", ["query"])
        file = folder / "a/adapter_model.safetensors"
        change(folder / "a", file)
        return folder / "a", lambda: read_adapter(folder / "a", base)

    return made


def huge_tensor(_folder: Path, file: Path) -> None:
    about = {"dtype": "F32", "shape": [2**20, 2**18], "data_offsets": [0, 2**40]}
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    text = json.dumps({name: about}).encode()
    sparse(file, struct.pack("<Q", len(text)) + text, 8 + len(text) + 2**40)


def many_tensors(_folder: Path, file: Path) -> None:
    save_file({f"a{i}": torch.empty(0) for i in range(200_000)}, file)


def long_header(_folder: Path, file: Path) -> None:
    sparse(file, struct.pack("<Q", 90_000_000) + b'{"', 100_000_000)


def huge_rank(folder: Path, _file: Any) -> None:
    edit_config(folder, r=10**9)


def pattern(**entries: Any) -> Callable[..., Any]:
    return adapter(lambda folder, _file: edit_config(folder, **entries))


# On a layer's name each takes Python's own engine for ever; the first two any that backtracks.
SLOW = (r"(.|..)+[0-9]", r"((.|..)+)+(?<!y)\Z", r"(\w+\.?)+!", r"((\w|\.)*\w)*!", r"(.|..)+\d!")
layer_patterns._SECONDS = 0.2


def model_of(**entries: Any) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Path, Callable[..., BaseModel]]:
        save_base("bert", folder / "base")
        edit_config(folder / "base", **entries)
        return folder / "base", lambda: load_base(folder / "base")

    return made


def text_file(
    name: str, read: Callable[..., dict[str, Any]], start: bytes, size: int
) -> Callable[..., tuple[Any, ...]]:
    def made(folder: Path) -> tuple[Any, ...]:
        file = sparse(folder / name, start, size)
        return file, lambda: read(file)

    return made


def head(folder: Path) -> tuple[Path, Callable[..., ClassifierHead]]:
    file = folder / "head.safetensors"
    classes = json.dumps([str(i) for i in range(2_000_000)])
    tensors = {"linear.weight": torch.ones(2, 3), "linear.bias": torch.ones(2)}
    save_file(tensors, file, metadata={"classes": classes})
    return file, lambda: load_head(file)


BOMBS = {
    "a line of 1 GB": long_line,
    "a JSON array of 1 GB": long_array,
    "millions of brackets in a sample": many_brackets,
    "a field of 100 MB": long_field,
    "a quote that is never closed": open_quote,
    "a million columns": many_columns,
    "a million keys": many_keys,
    "400 MB of text in a few kB": packed_text,
    "180 GB of text in a few kB": packed_dictionary,
    "300 MB of text behind a footer that says 1 kB": lying_footer,
    "100 MB of text in a compressed dataset": compressed_arrow,
    "20 million samples in a few kB": many_nulls,
    "400 MB in a column that nobody reads": other_column,
    "lists of lists in place of text": nested_text,
    "13,000 x 13,000 pixels": image(lambda: png(13_000, 13_000)),
    "100,000 x 100,000 pixels": image(lambda: png(100_000, 100_000, rows=1)),
    "a strip of 60,000 x 2 pixels": image(lambda: png(60_000, 2)),
    "eight images of 67 million pixels": huge_batch,
    "2.5 GB of text in an image": image(packed_texts),
    "0.5 GB of colour profile in an image": image(packed_profile),
    "a WebP of 16,384 x 16,384 pixels": image(huge_webp, "a.webp"),
    "a JPEG of 5,000 scans": image(many_scans, "a.jpg"),
    "a processor that scales to 100,000": scaled_up,
    "a tensor of 1 TB": adapter(huge_tensor),
    "200,000 tensors": adapter(many_tensors),
    "a header of 90 MB": adapter(long_header),
    "a rank of 10^9": adapter(huge_rank),
    **{f"target_modules = {slow}": pattern(target_modules=slow) for slow in SLOW},
    **{f"exclude_modules = {slow}": pattern(exclude_modules=slow) for slow in SLOW},
    **{f"rank_pattern = {slow}": pattern(rank_pattern={slow: 2}) for slow in SLOW},
    **{f"alpha_pattern = {slow}": pattern(alpha_pattern={slow: 2}) for slow in SLOW},
    **{f"modules_to_save = {slow}": pattern(modules_to_save=[slow]) for slow in SLOW},
    **{f"layers_pattern = {slow}": pattern(layers_pattern=[slow], layers_to_transform=[1])
       for slow in SLOW},
    "a pattern of a million characters": pattern(target_modules="(a|b)*" * 200_000),
    "ten thousand patterns": pattern(rank_pattern={f"x{i}.*.*!": 2 for i in range(10_000)}),
    "10^9 layers": model_of(num_hidden_layers=10**9),
    "1000 layers": model_of(num_hidden_layers=1000),
    "a vocabulary of 10^12": model_of(vocab_size=10**12),
    "10^9 hidden features": model_of(hidden_size=10**9),
    "a JSON file of 1 GB": text_file("a.json", lambda file: read_json(file, ConfigError, "mend it"),
                                     b"{}", 10**9),
    "a TOML file of 1 GB": text_file("a.toml", lambda file: read_toml(file, ConfigError),
                                     b"a=1", 10**9),
    "a head of two million classes": head,
}  # fmt: skip


SLOWEST = {
    "a line of 1 GB", "a JSON array of 1 GB", "millions of brackets in a sample",
    "20 million samples in a few kB", "eight images of 67 million pixels",
    "400 MB of text in a few kB", "400 MB in a column that nobody reads", "13,000 x 13,000 pixels",
    "1000 layers",
    "a million keys", "ten thousand patterns", "a JPEG of 5,000 scans",
    "300 MB of text behind a footer that says 1 kB", "a quote that is never closed",
    "a head of two million classes", "2.5 GB of text in an image",
    "0.5 GB of colour profile in an image", "200,000 tensors", "a million columns",
}  # fmt: skip
"""What takes a second or more to make or to read."""


def peak() -> int:
    """The most memory that the process had since :func:`reset`, in MiB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def reset() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def explode(name: str, folder: Path) -> dict[Any, Any]:
    folder.mkdir(parents=True)
    file, read = BOMBS[name](folder)
    before, started = reset(), time.process_time()
    try:
        read()
        ended = "read"
    except BaseException as error:  # noqa: BLE001
        wrong = fault(error, file)
        ended = f"broken: {wrong}" if wrong else f"refused: {error}"
    took = round(time.process_time() - started, 2)
    return {"bomb": name, "ended": ended, "seconds": took, "grown": peak() - before}


def main() -> None:
    folder, *names = sys.argv[1:]
    if names == ["quick"]:
        names = [name for name in BOMBS if name not in SLOWEST]
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    for number, name in enumerate(names or BOMBS):
        found = explode(name, Path(folder) / str(number))
        print(json.dumps(found), file=report, flush=True)


if __name__ == "__main__":
    main()
