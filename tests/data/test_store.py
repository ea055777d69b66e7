"""The feature store gives back what it was given, and refuses what does not match."""

from __future__ import annotations

import errno
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch

from vlkd.data import RegionBatch, RegionMemory, RegionStore, write_store
from vlkd.data.store import finish_store, layout, part_name, unfinished_folder, write_part
from vlkd.data.store.write import Seen
from vlkd.errors import VlkdError
from vlkd.regions.identity import DetectorIdentity
from vlkd.regions.paired import PairedRegions, RegionRecord, Regions, geometry


def same(left: Regions | PairedRegions, right: Regions | PairedRegions) -> bool:
    return type(left) is type(right) and all(
        np.array_equal(value, getattr(right, name)) for name, value in vars(left).items()
    )


def test_both_views_come_back_bit_for_bit_in_the_order_asked(store, records) -> None:
    order = [4, 0, 5, 0]
    keys = [records[number].key for number in order]
    for number, paired, own in zip(order, store.read(keys, "paired"), store.read(keys, "own"), strict=True):
        assert same(paired, records[number].paired())
        assert same(own, records[number].own())


def test_metadata(store, records, tmp_path) -> None:
    assert store.keys == tuple(record.key for record in records)
    assert (store.student_dim, store.teacher_dim, store.max_regions, len(store)) == (11, 13, 4, 6)
    written = write_store(tmp_path / "regions", records, "of these six")
    assert RegionStore.open(written.folder).fingerprint == "of these six"


def test_tags_of_either_view(store, records) -> None:
    keys = [records[3].key, records[1].key]
    assert store.tags(keys, "paired") == [records[3].tags, records[1].tags]
    assert store.tags(keys, "own") == [records[3].own_tags, records[1].own_tags]


def test_half_precision_rounds_features_but_not_geometry(records, tmp_path) -> None:
    detector = DetectorIdentity(name="a", fingerprint="1", score_threshold=0.2, max_regions=12)
    store = write_store(tmp_path / "half", records, dtype="float16", detectors={"student": detector})
    assert store.detectors == {"student": detector}  # the teacher's is not known
    for read, record in zip(store.read(store.keys, "paired"), records, strict=True):
        assert read.teacher_features.dtype == np.float32
        np.testing.assert_array_equal(read.teacher_features[:, -6:], record.teacher_features[:, -6:])
        rounded = record.teacher_features[:, :-6].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(read.teacher_features[:, :-6], rounded)


def test_more_pictures_than_one_write_holds(records, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(layout, "ROWS_A_BATCH", 2)
    store = write_store(tmp_path / "regions", records[:5])
    keys = [record.key for record in records[:5]][::-1]
    assert all(same(read, records[4 - row].paired()) for row, read in enumerate(store.read(keys, "paired")))


def test_opening_maps_the_file_and_does_not_read_it(records, tmp_path) -> None:
    wide = np.ones((4, 50_000), np.float32)
    record = records[3]  # 4 student regions
    big = replace(
        record,
        teacher_features=np.concatenate([wide, record.teacher_features[:, -6:]], axis=1),
        own_features=np.concatenate([wide[: len(record.own_boxes)], record.own_features[:, -6:]], axis=1),
    )
    folder = write_store(tmp_path / "regions", [big]).folder
    before = pyarrow.total_allocated_bytes()
    store = RegionStore.open(folder)
    assert (folder / "part-00000.arrow").stat().st_size > 1_000_000
    assert pyarrow.total_allocated_bytes() - before < 100_000
    assert same(store.read([big.key], "paired")[0], big.paired())


def test_memory_reads_like_a_store(store, records) -> None:
    memory = RegionMemory(records)
    assert (memory.student_dim, memory.teacher_dim, memory.max_regions) == (11, 13, 4)
    for view in ("paired", "own"):
        pairs = zip(memory.read(store.keys, view), store.read(store.keys, view), strict=True)
        assert all(same(left, right) for left, right in pairs)
        assert memory.tags(store.keys, view) == store.tags(store.keys, view)
    with pytest.raises(VlkdError, match="at least 1"):
        RegionMemory([])


def test_an_unknown_key_is_named(store) -> None:
    with pytest.raises(VlkdError, match="no picture 'test-000099'"):
        store.read(["test-000099"], "paired")


def test_nothing_is_overwritten(store, records) -> None:
    with pytest.raises(VlkdError, match="exists already"):
        write_store(store.folder, records)


def test_a_failed_write_leaves_nothing(records, tmp_path) -> None:
    def broken():
        yield records[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "regions", broken())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_write_left_is_swept_away(records, tmp_path) -> None:
    unfinished = tmp_path / ".regions.unfinished"
    unfinished.mkdir()
    (unfinished / "part-00000.arrow").write_bytes(b"half")
    assert len(write_store(tmp_path / "regions", records)) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["regions"]


def test_a_folder_that_is_no_store(tmp_path) -> None:
    with pytest.raises(VlkdError, match="holds no feature store"):
        RegionStore.open(tmp_path / "nowhere")
    (tmp_path / "regions.json").write_text("[]")
    with pytest.raises(VlkdError, match="has the format None"):
        RegionStore.open(tmp_path)
    (tmp_path / "regions.json").write_text("{")
    with pytest.raises(VlkdError, match="is no JSON"):
        RegionStore.open(tmp_path)


def test_a_cut_file_is_refused(records, tmp_path) -> None:
    folder = write_store(tmp_path / "regions", records).folder
    table = folder / "part-00000.arrow"
    size = table.stat().st_size
    table.write_bytes(table.read_bytes()[:-10])
    with pytest.raises(VlkdError, match=f"has {size - 10} bytes, but {size} were written"):
        RegionStore.open(folder)


def test_a_wrong_count_is_refused(records, tmp_path) -> None:
    folder = write_store(tmp_path / "regions", records).folder
    metadata = json.loads((folder / "regions.json").read_text())
    (folder / "regions.json").write_text(json.dumps(metadata | {"count": 7}))
    with pytest.raises(VlkdError, match=r"holds 6 pictures, but its regions\.json says 7"):
        RegionStore.open(folder)


def shuffled_between_pictures(first: RegionRecord, second: RegionRecord) -> list[RegionRecord]:
    return [
        replace(first, teacher_features=second.teacher_features),
        replace(second, teacher_features=first.teacher_features),
    ]


def rows_in_another_order(first: RegionRecord, second: RegionRecord) -> list[RegionRecord]:
    return [replace(first, student_features=first.student_features[::-1].copy()), second]


def boxes_of_another_picture(first: RegionRecord, second: RegionRecord) -> list[RegionRecord]:
    return [replace(first, student_boxes=second.student_boxes), second]


def a_row_too_few(first: RegionRecord, second: RegionRecord) -> list[RegionRecord]:
    return [replace(first, teacher_features=first.teacher_features[:-1]), second]


DAMAGES = {
    shuffled_between_pictures: "row 0 of teacher_features ends with the geometry .* but its box has",
    rows_in_another_order: "row 0 of student_features ends with the geometry .* but its box has",
    boxes_of_another_picture: "row 0 of student_features ends with the geometry .* but its box has",
    a_row_too_few: "3 boxes but 2 rows of teacher_features",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_does_not_match_is_refused_when_written_and_when_read(damage, records, tmp_path, monkeypatch) -> None:
    first, second = (replace(record_of_three(number), key=f"picture-{number}") for number in (1, 2))
    damaged = damage(first, second)
    sentence = f"'picture-1': {DAMAGES[damage]}"
    with pytest.raises(VlkdError, match=sentence):
        write_store(tmp_path / "refused", damaged)
    monkeypatch.setattr(Seen, "add", lambda self, record: None)
    store = write_store(tmp_path / "written", damaged)
    with pytest.raises(VlkdError, match=sentence):
        store.read(["picture-1", "picture-2"], "paired")


def record_of_three(number: int) -> RegionRecord:
    rng = np.random.default_rng(number)
    corner = rng.uniform(0, 20, (3, 2))
    boxes = np.concatenate([corner, corner + 20], axis=1).astype(np.float32)
    numbers = geometry(boxes, 64, 64)
    features = {
        width: np.concatenate([rng.standard_normal((3, width)).astype(np.float32), numbers], axis=1) for width in (4, 5)
    }
    return RegionRecord("", 64, 64, boxes, features[4], features[5], ("star",) * 3, boxes, features[5], ("star",) * 3)


def test_other_damage_on_disk_is_refused(records, tmp_path) -> None:
    folder = write_store(tmp_path / "regions", records[:2]).folder
    metadata = json.loads((folder / "regions.json").read_text())
    (folder / "regions.json").write_text(json.dumps(metadata | {"teacher_dim": 16}))
    store = RegionStore.open(folder)
    with pytest.raises(
        VlkdError, match="'test-000000': 7 numbers of teacher_features are no multiple of their width 10"
    ):
        store.read([records[0].key, records[1].key], "paired")
    with pytest.raises(VlkdError, match="'test-000000': 7 numbers of teacher_features"):
        store.read_into([records[0].key], "paired", RegionBatch.empty(1, 4, 11, 16, "paired"))


def test_a_record_that_does_not_fit_the_others_is_refused(records, tmp_path) -> None:
    wide = replace(
        records[1],
        student_features=np.concatenate([records[1].student_features[:, :1], records[1].student_features], 1),
    )
    with pytest.raises(VlkdError, match=r"'test-000001': features of width 12 \(student\).* earlier pictures' 11"):
        write_store(tmp_path / "regions", [records[0], wide])
    with pytest.raises(VlkdError, match="'test-000000' comes twice"):
        write_store(tmp_path / "regions", [records[0], records[0]])
    poisoned = replace(records[0], teacher_features=records[0].teacher_features.copy())
    poisoned.teacher_features[0, 0] = np.nan
    with pytest.raises(VlkdError, match=r"teacher_features: number 0 of region 0 .* is nan"):
        write_store(tmp_path / "regions", [poisoned])
    with pytest.raises(VlkdError, match="at least 1"):
        write_store(tmp_path / "regions", [])


@pytest.mark.parametrize("view", ["paired", "own"])
def test_a_batch_is_what_pictures_are_one_by_one(store, records, view) -> None:
    keys = [records[number].key for number in (4, 0, 5, 0)]
    dims = store.student_dim, store.teacher_dim
    for source in (store, RegionMemory(records)):
        batch = RegionBatch.empty(7, store.max_regions, *dims, view)
        for tensor in (batch.sizes, batch.boxes, *batch.features):
            tensor.fill_(torch.nan)
        source.read_into(keys, view, batch)
        for number, item in enumerate(store.read(keys, view)):
            sides = (item.features,) if view == "own" else (item.student_features, item.teacher_features)
            assert batch.counts[number] == len(item.boxes)
            for tensor, rows in zip((batch.boxes, *batch.features), (item.boxes, *sides), strict=True):
                assert np.array_equal(tensor[number, : len(rows)], rows)
                assert not tensor[number, len(rows) :].any()
        assert batch.boxes[4:].isnan().all()


def only(record: RegionRecord, view: str) -> RegionRecord:
    """A record without its other kind of regions."""
    if view == "own":
        return replace(
            record,
            student_boxes=record.student_boxes[:0],
            student_features=record.student_features[:0],
            teacher_features=record.teacher_features[:0],
            tags=(),
        )
    return replace(record, own_boxes=record.own_boxes[:0], own_features=record.own_features[:0], own_tags=())


@pytest.mark.parametrize(("view", "other"), [("paired", "own"), ("own", "paired")])
def test_a_store_may_hold_one_kind_of_regions(records, tmp_path, view, other) -> None:
    store = write_store(tmp_path / "regions", [only(record, view) for record in records])
    assert store.views == (view,)
    assert (store.student_dim, store.teacher_dim) == (11 if view == "paired" else 0, 13)
    expected = [record.paired() if view == "paired" else record.own() for record in records]
    assert all(same(a, b) for a, b in zip(store.read(store.keys, view), expected, strict=True))
    with pytest.raises(VlkdError, match="does not hold"):
        store.read(store.keys[:1], other)
    with pytest.raises(VlkdError, match="earlier pictures have"):
        write_store(tmp_path / "mixed", [only(records[0], view), records[1]])
    with pytest.raises(VlkdError, match="has no region"):
        write_store(tmp_path / "none", [only(only(records[0], view), other)])


def test_parts_of_any_order_and_empty_ones_make_a_store(records, tmp_path) -> None:
    folder = tmp_path / "regions"
    parts = unfinished_folder(folder)
    parts.mkdir()
    for number, some in ((3, records[4:]), (0, records[:1]), (2, []), (1, records[1:4])):
        write_part(parts / part_name(number), some, "float32")
    store = finish_store(folder, "four parts")
    assert store.keys == tuple(record.key for record in records)
    assert all(same(a, b.paired()) for a, b in zip(store.read(store.keys, "paired"), records, strict=True))
    assert not parts.exists()


def test_parts_that_do_not_belong_together_are_refused(records, tmp_path) -> None:
    folder = tmp_path / "regions"
    parts = unfinished_folder(folder)
    parts.mkdir()
    write_part(parts / part_name(0), records[:2], "float32")
    write_part(parts / part_name(1), records[1:3], "float32")
    with pytest.raises(VlkdError, match=r"'test-000001' is in both 'part-00000.arrow' and 'part-00001.arrow'"):
        finish_store(folder)
    write_part(parts / part_name(1), records[2:3], "float16")
    with pytest.raises(VlkdError, match=r"'dtype': 'float16'.* extract all parts anew"):
        finish_store(folder)


def test_another_process_opens_the_store_anew(store, records) -> None:
    twin = pickle.loads(pickle.dumps(store))
    assert same(twin.read([records[2].key], "paired")[0], records[2].paired())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_takes_no_memory_of_its_own(tmp_path) -> None:
    def anonymous() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])

    boxes = np.array([[0, 0, 10, 10]] * 50, np.float32)
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.random((50, 1000), np.float32), geometry(boxes, 64, 64)], axis=1)
    record = RegionRecord("", 64, 64, boxes, features, features, ("a",) * 50, boxes[:1], features[:1], ("a",))
    store = write_store(tmp_path / "regions", (replace(record, key=str(number)) for number in range(300)))
    assert sum(path.stat().st_size for path in store.folder.iterdir()) > 100_000_000
    batch = RegionBatch.empty(10, 50, 1006, 1006, "paired")
    store.read_into(store.keys[:10], "paired", batch)
    before = anonymous()
    for begin in range(0, 300, 10):
        store.read_into(store.keys[begin : begin + 10], "paired", batch)
    assert anonymous() - before < 5_000_000


def changed(record: RegionRecord, **changes) -> RegionRecord:
    """A record with one number of one array changed: name=(row, column, value)."""
    arrays = {name: getattr(record, name).copy() for name in changes}
    for name, (row, column, value) in changes.items():
        arrays[name][row, column] = value
    return replace(record, **arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["student_features", "teacher_features", "own_features", "student_boxes", "own_boxes"])
def test_no_number_in_a_store_is_infinite_or_none(records, tmp_path, name, dtype, value) -> None:
    with pytest.raises(VlkdError, match=r"'test-000001': .*(region 1|not finite)"):
        write_store(tmp_path / "regions", [changed(records[1], **{name: (1, 2, value)})], dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "kept"), [(65504, 65504), (65519, 65504), (-65519, -65504), (6e-8, 6e-8), (1e-30, 0)]
)
def test_float16_keeps_what_it_can_hold(records, tmp_path, value, kept) -> None:
    store = write_store(tmp_path / "half", [changed(records[1], own_features=(1, 2, value))], dtype="float16")
    (own,) = store.read(store.keys, "own")
    assert own.features[1, 2] == np.float32(np.float16(kept))


def test_what_float16_cannot_hold_is_refused_and_float32_keeps_it(records, tmp_path) -> None:
    large = changed(records[1], teacher_features=(1, 2, -70_000))
    faint = replace(
        records[1],
        own_features=np.concatenate(
            [records[1].own_features[:, :-6] * np.float32(1e-6), records[1].own_features[:, -6:]], axis=1
        ),
    )
    for record, sentence in (
        (large, "teacher_features: number 2 of region 1 .* is -70000, beyond float16's 65504: take float32"),
        (faint, "own_features: region 0 has no number above .*e-07, of which float16 keeps few digits"),
    ):
        with pytest.raises(VlkdError, match=f"'test-000001': {sentence}"):
            write_store(tmp_path / "half", [record], dtype="float16")
        store = write_store(tmp_path / record.key / str(id(record)), [record], dtype="float32")
        assert same(store.read(store.keys, "own")[0], record.own())
    empty = replace(
        records[1],
        own_features=np.concatenate(
            [np.zeros_like(records[1].own_features[:, :-6]), records[1].own_features[:, -6:]], axis=1
        ),
    )
    assert len(write_store(tmp_path / "zeros", [empty], dtype="float16")) == 1


@pytest.mark.parametrize("tags", [("star", None), ("star", " "), (1, "star")])
def test_tags_are_words(records, tmp_path, tags) -> None:
    with pytest.raises(VlkdError, match=r"'test-000001': tags has .*, but words are expected"):
        write_store(tmp_path / "regions", [replace(records[1], tags=tags)])


@pytest.mark.parametrize("size", [(0, 50), (100, -1), (100.5, 50), (True, 50), (10_000_000, 50)])
def test_a_picture_has_whole_pixels(records, tmp_path, size) -> None:
    with pytest.raises(VlkdError, match="whole numbers of pixels"):
        write_store(tmp_path / "regions", [replace(records[1], width=size[0], height=size[1])])


def test_a_key_has_one_spelling(records, tmp_path) -> None:
    """macOS spells an e with an accent as two characters."""
    one, other = replace(records[1], key="cafe\u0301"), replace(records[2], key="caf\u00e9")
    store = write_store(tmp_path / "regions", [one])
    assert store.keys == ("caf\u00e9",)
    for key in (one.key, other.key):
        assert np.array_equal(store.read([key], "own")[0].features, one.own_features)
    with pytest.raises(VlkdError, match="comes twice"):
        write_store(tmp_path / "twice", [one, other])


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(records, tmp_path, monkeypatch) -> None:
    """Arrow's own error names no file."""
    original = pyarrow.record_batch

    def full(columns, schema):
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "Error writing bytes to file")
        calls.append(columns)
        return original(columns, schema=schema)

    calls: list = []
    monkeypatch.setattr(layout, "ROWS_A_BATCH", 2)
    monkeypatch.setattr(pyarrow, "record_batch", full)
    with pytest.raises(OSError, match=r"No space left on device.*part-00000.arrow") as caught:
        write_store(tmp_path / "regions", records)
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []
    part = tmp_path / part_name(0)
    calls.clear()
    with pytest.raises(OSError, match=r"part-00000.arrow"):
        write_part(part, records, "float32")
    assert list(tmp_path.iterdir()) == []
