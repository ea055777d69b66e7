"""Which files of a folder are pictures, under which keys, and what is said of the rest."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from vlkd.errors import VlkdError
from vlkd.regions.picture_folder import find_pictures, read_ahead


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(folder: Path) -> list[str]:
    return [file.name for file in find_pictures(folder).files]


def test_pictures_of_every_suffix_and_case_are_found(tmp_path: Path) -> None:
    wanted = ["a.JPG", "b.jpeg", "c.jfif", "d.PNG", "e.webp", "f.BMP", "g.gif", "h.tif", "i.TIFF", "j.avif", "k.pgm"]
    fill(tmp_path, *wanted, "sub/deep/x.jpg", "sub.b/x.jpg")
    assert names(tmp_path) == [*wanted, "sub/deep/x.jpg", "sub.b/x.jpg"]
    assert find_pictures(tmp_path).told() == ""


def test_what_is_left_out_is_told_by_kind_count_and_example(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.heic", "c.HEIC", "sub/notes.txt", "README", ".hidden.jpg", ".git/x.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find_pictures(tmp_path)
    assert [file.name for file in found.files] == ["a.jpg"]
    told = found.told()
    assert told.startswith(f"Left out of '{tmp_path}': 2 .heic (such as 'b.heic'), 2 hidden (such as '.git'), 1 .txt")
    for part in (
        "'sub/notes.txt'",
        "1 without suffix (such as 'README')",
        "1 links that lead nowhere",
        "1 that are no",
    ):
        assert part in told
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(VlkdError, match=r"no picture in .*files ending with .*Left out .* 2 \.heic"):
        find_pictures(tmp_path)


def test_linked_folders_are_read_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path, "elsewhere/x.jpg", "elsewhere/sub/y.jpg", "images/a.jpg")
    images = tmp_path / "images"
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "one.png").symlink_to(images / "a.jpg")
    (tmp_path / "elsewhere" / "back").symlink_to(images)
    (images / "self").symlink_to(images)
    found = find_pictures(images)
    assert [file.name for file in found.files] == ["a.jpg", "linked/sub/y.jpg", "linked/x.jpg", "one.png"]
    assert "2 links to a folder that they are in (such as 'linked/back')" in found.told()


def test_a_folder_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    assert "1 folders that cannot be opened (such as 'closed/')" in find_pictures(tmp_path).told()


def test_all_keys_that_collide_are_told_at_once(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "a.PNG", "b/x.gif", "b/x.jpg", "b/x.webp", "A.jpg", "ok.jpg")
    with pytest.raises(VlkdError) as caught:
        find_pictures(tmp_path)
    told = str(caught.value)
    assert "'a.PNG' and 'a.jpg' would both have the key 'a'; " in told
    assert "'b/x.gif' and 'b/x.jpg' and 'b/x.webp' would both have the key 'b/x': rename" in told
    for number in range(15):
        fill(tmp_path, f"{number:02}.jpg", f"{number:02}.png")
    with pytest.raises(VlkdError, match=r"and 7 more keys: rename"):
        find_pictures(tmp_path)


def test_keys_that_differ_in_case_are_two_pictures(tmp_path: Path) -> None:
    """As the ids of many collections do."""
    fill(tmp_path, "aB.jpg", "Ab.jpg")
    assert [file.key for file in find_pictures(tmp_path).files] == ["Ab", "aB"]


def test_a_name_in_two_forms_of_unicode_is_one_key(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    fill(tmp_path, decomposed)
    (file,) = find_pictures(tmp_path).files
    assert file.name == decomposed and file.key == composed[:-4] != decomposed[:-4]
    fill(tmp_path, composed)
    with pytest.raises(VlkdError, match="would both have the key 'café'"):
        find_pictures(tmp_path)


def test_a_name_that_is_no_utf8_is_told_with_its_reason(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "fine.png")
    Image.new("RGB", (4, 4)).save(os.fsencode(tmp_path) + b"/caf\xe9.png", format="PNG")
    read = {file.name: result for file, result in read_ahead(find_pictures(tmp_path).files, 2)}
    assert read["fine.png"].shape == (4, 4, 3)  # type: ignore[union-attr]
    assert "not UTF-8" in str(read[os.fsdecode(b"caf\xe9.png")])


def test_no_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VlkdError, match="There is no folder"):
        find_pictures(tmp_path / "none")
