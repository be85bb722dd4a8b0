"""What a start writes to stderr, by descriptor as native libraries do."""

import os

import pytest

from diffstride.startup import quiet_libraries


@pytest.fixture(autouse=True)
def no_log_level(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)


def test_what_libraries_say_while_they_load_is_held_back(capfd):
    with quiet_libraries():
        os.write(2, b"CUDA error\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"


def test_a_start_that_fails_shows_all_of_it(capfd):
    with pytest.raises(ImportError), quiet_libraries():
        os.write(2, b"no such symbol\n")
        raise ImportError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "no such symbol\nafter\n"


def test_a_log_level_of_the_users_is_theirs(monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with quiet_libraries():
        os.write(2, b"all of it\n")
    assert capfd.readouterr().err == "all of it\n"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"


def test_a_command_that_fails_to_start_says_so_in_one_line():
    with pytest.raises(SystemExit) as error, quiet_libraries(exits=True):
        raise ValueError("no backend\nof this name")
    expected = "error: ValueError: no backend of this name (--debug shows more)"
    assert error.value.code == expected
