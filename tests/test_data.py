"""A site's dataset: what is read, in which order, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from client.data.packed_sizes import unpacked_pages
from client.data.samples import make_dataset, read_dataset
from layerweld.errors import DataError
from layerweld.settings.run import CalibrationSettings

TEXTS = ["one, two", 'a "quote"', "N/A", "line\nbreak", "naïve"]
LABELS = ["b", "a", "b", "c", "a"]
STRICT = CalibrationSettings(max_unreadable=0.0)
LENIENT = CalibrationSettings(max_unreadable=0.5)


def write_jsonl(file: Path) -> Path:
    records = [{"text": t, "label": n} for t, n in zip(TEXTS, LABELS, strict=True)]
    file.write_text("\n".join(json.dumps(r) for r in records) + "\n\n")
    return file


def write_csv(file: Path) -> Path:
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([("text", "label"), *zip(TEXTS, LABELS, strict=True)])
    return file


def write_parquet(file: Path) -> Path:
    pd.DataFrame({"text": TEXTS, "label": LABELS}).to_parquet(file)
    return file


def write_saved_dataset(folder: Path) -> Path:
    folder.mkdir()
    table = pa.table({"text": TEXTS, "label": LABELS})
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    files = [{"filename": "data-00000-of-00001.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    return folder


def jsonl(folder: Path, *lines: str) -> Path:
    file = folder / "data.jsonl"
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("data.jsonl", write_jsonl),
        ("data.csv", write_csv),
        ("data.parquet", write_parquet),
        ("saved", write_saved_dataset),
    ],
)
def test_the_same_samples_are_the_same_in_every_format(
    tmp_path: Path, name: str, write: Any
) -> None:
    dataset = read_dataset(write(tmp_path / name), STRICT, reads_images=False)
    assert dataset == make_dataset(TEXTS, LABELS)
    assert dataset.classes == ("a", "b", "c")
    assert dataset.labels == (1, 0, 1, 2, 0)


def test_samples_without_the_label_column_have_no_labels(tmp_path: Path) -> None:
    dataset = read_dataset(
        jsonl(tmp_path, '{"text": "a"}', '{"text": "b"}'), STRICT, reads_images=False
    )
    assert (dataset.labels, dataset.classes) == (None, ())


def test_a_number_names_the_same_class_in_every_format(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a", "label": label}) for label in (1, 1.0, "1")]
    assert read_dataset(jsonl(tmp_path, *lines), STRICT, reads_images=False).classes == ("1",)


def test_the_digest_sees_inputs_labels_and_order() -> None:
    versions = [
        make_dataset(["a", "b"], None),
        make_dataset(["b", "a"], None),
        make_dataset(["ab", ""], None),
        make_dataset(["a", "b"], ["x", "y"]),
        make_dataset(["a", "b"], ["x", "x"]),
    ]
    assert len({dataset.digest for dataset in versions}) == len(versions)


BROKEN = ['{"text": ', "[1]", "{}", '{"text": ""}', '{"text": 3}', '{"text": "\\ud800"}']


@pytest.mark.parametrize("line", BROKEN)
def test_an_unreadable_row_is_counted_and_skipped(tmp_path: Path, line: Any) -> None:
    source = jsonl(tmp_path, '{"text": "first"}', line, '{"text": "last"}')
    dataset = read_dataset(source, LENIENT, reads_images=False)
    assert (list(dataset.inputs), dataset.skipped) == (["first", "last"], 1)


def test_more_unreadable_samples_than_allowed_are_an_error(tmp_path: Path) -> None:
    source = jsonl(tmp_path, '{"text": "first"}', "", *BROKEN)
    with pytest.raises(DataError, match=r"6 of 7 .* line 3: .*`calibration.max-unreadable`"):
        read_dataset(source, LENIENT, reads_images=False)


@pytest.mark.parametrize("lines", [BROKEN, BROKEN[:1], ['{"text": ""}', '{"text": null}']])
def test_samples_that_are_all_unreadable_are_an_error_whatever_is_allowed(
    tmp_path: Path, lines: Any
) -> None:
    anything_goes = CalibrationSettings(max_unreadable=1.0)
    with pytest.raises(DataError, match=rf"{len(lines)} of {len(lines)} .* line 1: .*fix them$"):
        read_dataset(jsonl(tmp_path, *lines), anything_goes, reads_images=False)
    one = read_dataset(jsonl(tmp_path, *lines, '{"text": "a"}'), anything_goes, reads_images=False)
    assert (list(one.inputs), one.skipped) == (["a"], len(lines))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("data.jsonl", b'{"text": "secret", }', r"not a JSON object, from column 20 on"),
        ("data.jsonl", b'{"text": "secret \xef"}', r"not UTF-8"),
        ("data.jsonl", b'["secret"]', r"not a JSON object"),
        ("data.jsonl", b"[" * 99_999, r"not a JSON object: brackets nested too deeply"),
        ("data.jsonl", b'{"text": ' + b"1" * 9_999 + b"}", r"not a JSON object that can be read"),
        ("data.jsonl", b'{"body": "secret", "label": 1}', r"no text in column 'text'"),
        ("data.jsonl", b'{"text": "secret"}', r"no label in column 'label'"),
        ("data.jsonl", b'{"text": "\\ud800", "label": 1}', r"column 'text' is not UTF-8"),
        ("data.csv", b"secret,\xef", r"column 'label' is not UTF-8"),
        ("data.csv", b"secret", r"1 fields, but the header has 2"),
        ("data.csv", b'"secret', r"its quotes are broken, or not closed"),
    ],
)
def test_the_first_unreadable_row_says_why_and_shows_nothing(
    tmp_path: Path, name: str, content: Any, reason: str
) -> None:
    start = {"data.csv": b"text,label\nfine,1\n", "data.jsonl": b'{"text": "fine", "label": 1}\n'}
    (tmp_path / name).write_bytes(start[name] + content)
    with pytest.raises(
        DataError, match=rf"1 of 2 .*, the first is line \d: {reason}; fix"
    ) as error:
        read_dataset(tmp_path / name, STRICT, reads_images=False)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_that_is_one_json_array_is_told_from_lines(
    tmp_path: Path, indent: int | None
) -> None:
    source = tmp_path / "data.json"
    source.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=indent))
    with pytest.raises(DataError, match=r"is a JSON array; write one object per line$"):
        read_dataset(source, CalibrationSettings(max_unreadable=1.0), reads_images=False)
    lines = jsonl(tmp_path, "[1]", '{"text": "a"}')
    assert read_dataset(lines, LENIENT, reads_images=False).skipped == 1


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_row_of_a_million_characters_is_read_whole(tmp_path: Path, suffix: str) -> None:
    texts = ["short", "ä" * 1_000_000, "after"]
    file, table = tmp_path / f"data.{suffix}", pd.DataFrame({"text": texts})
    write = {
        "jsonl": lambda: table.to_json(file, orient="records", lines=True),
        "csv": lambda: table.to_csv(file, index=False),
        "parquet": lambda: table.to_parquet(file),
    }
    write[suffix]()
    assert list(read_dataset(file, STRICT, reads_images=False).inputs) == texts


def test_an_open_quote_in_a_csv_costs_every_line_it_swallows(tmp_path: Path) -> None:
    source = tmp_path / "data.csv"
    source.write_text('text\nfine\n"never closed\nlost\nlost too\n')
    with pytest.raises(DataError, match=r"3 of 4 samples .* line 3: its quotes are"):
        read_dataset(source, LENIENT, reads_images=False)


def test_text_that_is_not_utf8_is_unreadable(tmp_path: Path) -> None:
    source = tmp_path / "data.csv"
    source.write_bytes("text\nfine\nna\xefve\n".encode("latin-1"))
    assert read_dataset(source, LENIENT, reads_images=False).skipped == 1


def test_a_missing_column_lists_those_that_exist(tmp_path: Path) -> None:
    source = jsonl(tmp_path, '{"body": "a", "label": 1}')
    with pytest.raises(DataError, match=r"has body, label: set `calibration.text-column`"):
        read_dataset(source, STRICT, reads_images=False)


@pytest.mark.parametrize("column", ["Text", "TEXT", " text"])
def test_a_missing_column_names_the_one_that_is_spelt_nearly_so(
    tmp_path: Path, column: str
) -> None:
    source = jsonl(tmp_path, json.dumps({column: "a", "label": 1}))
    with pytest.raises(DataError, match=rf"set `calibration.text-column` to '{column}', or "):
        read_dataset(source, STRICT, reads_images=False)


LATIN = r"the header is not UTF-8; convert the file \(iconv -f latin1 -t utf8\)$"


@pytest.mark.parametrize(
    ("header", "text_column", "label_column"),
    [("naïve,x", "text", "label"), ("naïve,x", "naïve", "label"), ("text,état", "text", "état")],
)
def test_a_header_that_is_not_utf8_is_an_error_where_a_column_is_missing(
    tmp_path: Path, header: str, text_column: str, label_column: str
) -> None:
    source = tmp_path / "data.csv"
    source.write_bytes(f"{header}\na,b\n".encode("latin-1"))
    settings = CalibrationSettings(text_column=text_column, label_column=label_column)
    with pytest.raises(DataError, match=LATIN):
        read_dataset(source, settings, reads_images=False)


@pytest.mark.parametrize("header", ["text,label,état", "text,état,x"])
def test_a_header_that_nobody_reads_may_be_in_any_encoding(tmp_path: Path, header: str) -> None:
    source = tmp_path / "data.csv"
    source.write_bytes(f"{header}\na,b,c\n".encode("latin-1"))
    assert list(read_dataset(source, STRICT, reads_images=False).inputs) == ["a"]


@pytest.mark.parametrize(("separator", "name"), [(";", "';'"), ("\t", "tabs")])
@pytest.mark.parametrize("text", ["fine", "one, two"])
def test_a_csv_with_another_separator_is_told_so(
    tmp_path: Path, separator: str, name: str, text: str
) -> None:
    source = tmp_path / "data.csv"
    source.write_text(f"text{separator}label\n{text}{separator}a\n")
    with pytest.raises(
        DataError, match=rf"seems to use {name} as its separator; convert it to commas$"
    ):
        read_dataset(source, STRICT, reads_images=False)
    source.write_text(f'text{separator}\n"{text}"\n')
    one = CalibrationSettings(text_column=f"text{separator}")
    assert list(read_dataset(source, one, reads_images=False).inputs) == [text]


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("empty.jsonl", b"", "holds no samples"),
        ("empty.csv", b"text,label\n", "holds no samples"),
        ("data.pdf", b"%PDF", r"convert it to one of these"),
        ("data.parquet", b"not parquet", "damaged"),
    ],
)
def test_a_source_that_cannot_be_read_is_an_error(
    tmp_path: Path, name: str, content: bytes, remedy: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=remedy):
        read_dataset(tmp_path / name, STRICT, reads_images=False)


@pytest.mark.parametrize("reads_images", [False, True])
def test_a_missing_source_is_an_error(tmp_path: Path, reads_images: bool) -> None:
    with pytest.raises(DataError, match="check the site's `data` path"):
        read_dataset(tmp_path / "absent", STRICT, reads_images)


def test_a_folder_without_a_saved_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name one of its splits"):
        read_dataset(tmp_path, STRICT, reads_images=False)


def test_a_model_that_reads_images_wants_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give a folder of images"):
        read_dataset(write_jsonl(tmp_path / "data.jsonl"), STRICT, reads_images=True)


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf16_is_called_that_with_the_way_out(tmp_path: Path, name: str, encoding: str) -> None:
    content = "text\na\n" if name == "data.csv" else '{"text": "a"}\n'
    (tmp_path / name).write_bytes(("\ufeff" if encoding != "utf-16" else "").encode(encoding) +
                                  content.encode(encoding))  # fmt: skip
    with pytest.raises(DataError, match=r"is UTF-16; convert it \(iconv -f utf-16 -t utf-8\)"):
        read_dataset(tmp_path / name, LENIENT, reads_images=False)


@pytest.mark.parametrize("kind", ["date", "list", "decimal"])
def test_a_column_that_nobody_reads_may_hold_what_python_cannot(tmp_path: Path, kind: str) -> None:
    other = {
        "date": pa.array([253402297200] * 2, pa.timestamp("s", "+14:00")),
        "list": pa.array([[[1]], None]),
        "decimal": pa.array([1, 2], pa.decimal256(70, 60)),
    }[kind]
    table = pa.table({"text": ["a", "b"], "until": other})
    pa.parquet.write_table(table, tmp_path / "data.parquet")
    dataset = read_dataset(tmp_path / "data.parquet", STRICT, reads_images=False)
    assert (list(dataset.inputs), dataset.labels) == (["a", "b"], None)


def test_text_that_is_no_text_names_its_column(tmp_path: Path) -> None:
    pd.DataFrame({"text": [["a"], ["b"]]}).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"data\.parquet: column 'text' holds 'list<.*, not text"):
        read_dataset(tmp_path / "data.parquet", STRICT, reads_images=False)


def test_labels_of_every_parquet_kind_name_the_same_classes(tmp_path: Path) -> None:
    for number, labels in enumerate((["1", "0"], [1, 0], [1.0, 0.0], pd.Categorical(["1", "0"]))):
        file = tmp_path / f"{number}.parquet"
        pd.DataFrame({"text": ["a", "b"], "label": labels}).to_parquet(file)
        assert read_dataset(file, STRICT, reads_images=False).classes == ("0", "1")


def test_the_first_unreadable_row_is_the_first_whatever_it_lacks(tmp_path: Path) -> None:
    source = jsonl(tmp_path, '{"text": "a", "label": 1}', '{"text": "a"}', '{"label": 1}')
    with pytest.raises(DataError, match=r"2 of 3 .* line 2: no label in column 'label'"):
        read_dataset(source, STRICT, reads_images=False)


def test_a_message_shows_few_columns_and_never_what_a_terminal_obeys(tmp_path: Path) -> None:
    keys = {f"key {i:04}": 1 for i in range(5000)} | {"\x1b[2J": 1, "a" * 999: 1}
    with pytest.raises(DataError, match="and 980 more: set `calibration") as error:
        read_dataset(jsonl(tmp_path, json.dumps(keys)), STRICT, reads_images=False)
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


def test_a_name_in_a_saved_dataset_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = write_saved_dataset(tmp_path / "saved")
    (tmp_path / "outside.arrow").write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../outside.arrow"}]}')
    with pytest.raises(DataError, match=r"names '\.\./outside\.arrow', not a file beside it"):
        read_dataset(folder, STRICT, reads_images=False)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("packing", ["none", "snappy", "zstd", "gzip", "brotli"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_unpack_to_what_an_honest_footer_says(
    tmp_path: Path, version: str, packing: str, dictionary: bool
) -> None:
    table = pa.table({"text": [f"row {i}" * (i % 40) for i in range(3000)]})
    pa.parquet.write_table(
        table, tmp_path / "data.parquet", compression=packing, use_dictionary=dictionary,
        data_page_version=version, data_page_size=10_000, write_page_checksum=True,
    )  # fmt: skip
    column = pa.parquet.read_metadata(tmp_path / "data.parquet").row_group(0).column(0)
    said = column.total_uncompressed_size  # the pages' own headers included
    assert 0.9 * said < unpacked_pages(tmp_path / "data.parquet", [column]) <= said
