"""What is written is whole, what is read is as said, or one line tells."""

import errno
import json

import pytest
from made_up_runs import record

from diffstride import files
from diffstride.errors import UserError
from diffstride.runs import read_records, read_rows, read_run

ROW = '{"epoch": 1, "seconds": 2.0}'
BAD_LINES = {
    "null": "it must be dict",
    "3": "it must be dict",
    '"text"': "it must be dict",
    "[1]": "it must be dict",
    "text": "it must be JSON",
    "{}": "epoch must be int",
    '{"epoch": null}': "epoch must be int",
    # Beyond those that were reported:
    '{"epoch": true}': "epoch must be int",
    '{"epoch": 1.5}': "epoch must be int",
    '{"epoch": 1, "seconds": "2"}': "seconds must be float",
    '{"epoch": 1, "macs": NaN}': "macs must be float",
    '{"epoch": 1, "macs": 1e999}': "macs must be float",
    '{"epoch": 1} {"epoch": 2}': "it must be JSON",
    '{"epoch": 1': "it must be JSON",
    '{"epo\0ch": 1}': "it must be JSON",
    '{"epoch": ' + "9" * 5000 + "}": "it must be JSON",
    "[" * 100_000: "it must be JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:24])
def test_a_line_that_is_no_row_is_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{ROW}\n\n{line}\n{ROW}\n")
    with pytest.raises(UserError) as caught:
        read_rows(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: {BAD_LINES[line]}")
    assert "Delete this line" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "content",
    [
        f"{ROW}\n\n{ROW}\n",
        f"{ROW}\n\0\0\0\0\n{ROW}\n",
        f"{ROW}\n \t\n{ROW}\n",
        f"\n\n{ROW}\r\n{ROW}\r\n",
        f"\0\0{ROW}\n{ROW}\n\0\0\0",
        f'{ROW}\n{ROW}\n{{"epoch": 3, "sec',
    ],
)
def test_lines_that_hold_nothing_are_left_out(content, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    assert read_rows(path) == 2 * [json.loads(ROW)]


def places(value, path=()):
    """Paths to all values inside of a record that a report relies on."""
    free = ("settings", "environment")
    if path and path[-1] not in free:
        yield path
    if isinstance(value, dict) and not (path and path[-1] in free):
        for key, each in value.items():
            if not key.startswith(("stride/", "output_size/")):
                yield from places(each, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


WHOLE = record(epochs=1)
UNCHECKED = {  # Which nothing but the terminal shows, if anything.
    *("accuracy", "val_accuracy", "step", "test_loss", "parameters", "norm"),
    *("seed", "shared_stride"),
}


@pytest.mark.parametrize(
    "place",
    [p for p in places(WHOLE) if p[-1] not in UNCHECKED],
    ids=lambda place: ".".join(map(str, place)),
)
def test_records_of_another_shape_are_refused(place, tmp_path):
    path = tmp_path / "runs.jsonl"
    lines = [json.dumps(WHOLE)]
    for wrong in ({"a": 1}, [[]], "text", -1.5, True, 10**400):
        each = json.loads(lines[0])
        inner = each
        for key in place[:-1]:
            inner = inner[key]
        if type(inner[place[-1]]) is type(wrong):
            continue
        if isinstance(wrong, float) and isinstance(inner[place[-1]], int):
            continue
        if place == ("error",) and wrong == "text":
            continue
        inner[place[-1]] = wrong
        path.write_text(f"{lines[0]}\n{json.dumps(each)}\n")
        with pytest.raises(UserError, match="runs.jsonl, line 2: ") as caught:
            read_records(path)
        *_, last = (key for key in place if isinstance(key, str))
        assert last in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "summary.json", "metrics.jsonl"])
def test_files_that_cannot_be_read_are_named(name, tmp_path):
    path = tmp_path / name
    for content in (b"\xff\n", b'{"a"\n', b"[]\n", b"7\n", b"{}\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{path}"):
            read_run(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"^{path} cannot be read: .*Is a dir"):
        read_run(tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "notes.txt"
    files.replace_text(path, "old")
    (tmp_path / "unfinished.notes.txt").symlink_to("/dev/full")
    with pytest.raises(UserError) as caught:
        files.replace_text(path, "new")
    assert str(caught.value).startswith(
        f"{path} cannot be written: No space left on device. "
    )
    # What was begun is gone, and the next attempt finds its place.
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]
    assert path.read_text() == "old"
    files.replace_text(path, "new")
    assert path.read_text() == "new"


CODES = ("ENOSPC", "EROFS", "EACCES", "EDQUOT", "EIO", "EFBIG", "ENOENT")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_every_step_of_writing_may_fail(code, step, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("old")
    error = OSError(getattr(errno, code), f"as {code} says")

    def fail(*args):
        raise error

    def write(beside):
        beside.write_text("half")
        if step == "write":
            fail()

    if step != "write":
        monkeypatch.setattr(f"os.{step}", fail)
    with pytest.raises(UserError, match=f"x.json cannot .* as {code} says"):
        files.replace_file(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_is_interrupted_leaves_nothing_behind(tmp_path):
    def write(beside):
        beside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_file(tmp_path / "x", write)
    assert not list(tmp_path.iterdir())


FOREIGN = {
    "notes": "precious",
    "a table": "a,b\n1,2\n",
    "JSON": '{"a": 1}',
    "other lines": '{"a": 1}\n{"a": 2}\n',
    "binary": b"\x89PNG\r\n\x1a\n",
    "a config": "train.seed = 1\n",
    "rows of an epoch": f"{ROW}\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_refused(content, tmp_path):
    path = tmp_path / "file"
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    with pytest.raises(UserError, match="^--x must be a new file, or records"):
        files.read_ours(path, "--x", "records", read_records)
    assert path.read_bytes() == content


def test_what_is_no_file_is_refused(tmp_path):
    for path in (files.pathlib.Path("/dev/null"), tmp_path):
        with pytest.raises(UserError, match=f"Received: {path}, .* no file"):
            files.read_ours(path, "--x", "records", read_records)
    path = tmp_path / "new"
    assert files.read_ours(path, "--x", "records", read_records) is None
    files.replace_lines(path, [WHOLE])
    assert files.read_ours(path, "--x", "records", read_records) == [WHOLE]
