import os
import pathlib
import signal
import urllib.error

import pytest

from diffstride.errors import ConfigError, UserError, run_reporting_errors
from diffstride.files import make_folder


def ended(error, capsys):
    """Status and stderr of a `main` that ends with an error."""

    def main(argv):
        raise error

    status = run_reporting_errors(main)([])
    out, err = capsys.readouterr()
    assert out == ""
    return status, err


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("two\nlines"), "two lines"),
        (ConfigError("a\0b"), r"a\0b"),
        (MemoryError(), "MemoryError: (--debug"),
        (KeyError("name"), "KeyError: 'name' (--debug"),
        (RecursionError("too deep"), "RecursionError: too deep (--debug"),
        (OSError(28, "No space left"), "OSError: [Errno 28] No space left (-"),
        (urllib.error.URLError("x\n y"), "URLError: <urlopen error x y> (--de"),
        (UnicodeDecodeError("utf8", b"\xff", 0, 1, "x"), "UnicodeDecodeError:"),
        (AssertionError("\n" * 2000), "AssertionError: (--debug"),
    ],
)
def test_whatever_is_raised_is_told_in_one_line(error, line, capsys):
    status, err = ended(error, capsys)
    assert status == 1
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "kind", [UserError, ValueError, type("E", (OSError,), {})]
)
def test_long_messages_are_shortened(kind, capsys):
    _, err = ended(kind("start " + "x" * 10**6 + " end"), capsys)
    assert len(err) < 1200
    assert "start" in err and " end" in err


def test_debug_shows_where_an_error_comes_from(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main", "--debug"])
    status, err = ended(ZeroDivisionError("x"), capsys)
    assert status == 1
    assert "Traceback" in err and "raise error" in err
    assert err.splitlines()[-1].startswith("error: ZeroDivisionError: x")
    assert "Traceback" not in ended(UserError("x"), capsys)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_in_one_line(number, capsys):
    def main(argv):
        os.kill(os.getpid(), number)
        return 0

    before = signal.getsignal(number)
    assert run_reporting_errors(main)([]) == 128 + number
    assert capsys.readouterr().err == "Stopped.\n"
    assert signal.getsignal(number) == before
    # As in a shell's background, and under nohup.
    signal.signal(number, signal.SIG_IGN)
    try:
        assert run_reporting_errors(main)([]) == 0
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    "path",
    ["", " ", "a\0b", "a" * 5000, "/dev/null/a", "~nobody-here/a", __file__],
)
def test_folders_that_cannot_be_made(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="`x` must be a folder that can be"):
        make_folder(path, "`x`")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_folder("~/a/b", "`x`") == pathlib.Path(tmp_path, "a", "b")
    assert (tmp_path / "a" / "b").is_dir()
