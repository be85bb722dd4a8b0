"""Searches: what is tried, what is given up, and what survives a kill."""

import itertools
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

import pytest

from diffstride.errors import UserError
from diffstride.runs import read_run, read_runs, training_macs
from diffstride.search import costs, outcome, runner, space, study
from diffstride.search.__main__ import main
from diffstride.search.journal import Journal
from diffstride.search.study import Cost, Options, Study
from diffstride.sweep import processes

ROOT = pathlib.Path(__file__).resolve().parent.parent

PYTHON = sys.executable  # Tests put a program of theirs in its place.
# Without it the tool ends in one line, which is tested all the same.
needs_optuna = pytest.mark.usefixtures("optuna")

# Takes the place of diffstride.main. What it reaches follows from the strides;
# test accuracies run against validation accuracies.
TRAINER = """
import json, math, os, pathlib, re, signal, sys, time
flags = dict(re.findall(r"--(\\w+)=(.*)", "\\n".join(sys.argv)))
workdir = pathlib.Path(flags["workdir"])
folder = workdir.parent
with (folder / "started").open("a") as file:
    print(workdir.name, os.getpid(), file=file)
def stop(*_):
    print("Stopped.")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
found = re.search(r"strides-([\\d-]+)_", workdir.name)[1]
strides = [int(s) for s in found.split("-")]
last = 0.9 - 0.1 * abs(math.log(math.prod(strides) / 6)) - 0.01 * strides[0]
metrics = workdir / "metrics.jsonl"
rows = metrics.read_text().splitlines() if metrics.exists() else []
(workdir / "config.gin").write_text("")
fails = folder / "fails"
if fails.exists() and workdir.name in fails.read_text():
    sys.exit("error: Loss is nan")
for epoch in range(len(rows) + 1, 4):
    while (folder / f"wait_{epoch}").exists():
        time.sleep(0.01)
    row = {"epoch": epoch, "val_accuracy": last * epoch / 3, "macs": 1}
    row["loss"] = (1 - last) / epoch
    rows.append(json.dumps(row))
    beside = workdir / "beside"
    beside.write_text("\\n".join(rows) + "\\n")
    beside.rename(metrics)
    if epoch < 3 and (folder / "slow").exists():
        time.sleep(0.15)
summary = {"test_accuracy": 1 - last, "validation_accuracy": last,
  "seconds": 1.0, "epochs": 3, "images_per_epoch": 10,
  "cost": {"macs": 7200 // math.prod(strides)}}
beside = workdir / "beside"
beside.write_text(json.dumps(summary))
beside.rename(workdir / "summary.json")
"""
# And of diffstride.counting.
COUNTER = """
import json, math, re, sys
for line in sys.stdin:
    (binding,) = [b for b in json.loads(line) if ".strides = " in b]
    strides = map(int, re.findall(r"\\d+", binding))
    answer = {"macs": 7200 // math.prod(strides), "epochs": 3, "images": 10}
    answer["validates"] = "--gin_bindings=no validation" not in sys.argv
    print(json.dumps(answer), flush=True)
"""


def last_accuracy(strides):
    return 0.9 - 0.1 * abs(math.log(math.prod(strides) / 6)) - 0.01 * strides[0]


@pytest.fixture(scope="session")
def optuna():
    return pytest.importorskip("optuna")


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Another Python, in which nothing is trained; in a folder of its own."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "counter.py").write_text(COUNTER)
    path = tmp_path / "python"
    path.write_text(
        f"""#!/bin/sh
case "$2" in
diffstride.main) script=trainer ;;
diffstride.counting) script=counter ;;
*) exit 1 ;;
esac
shift 2
exec {sys.executable} -S "{tmp_path}/$script.py" "$@"
"""
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.chdir(tmp_path)
    return path


def arguments(*more, folder="runs"):
    return [
        "search",
        "--gin_config=digits.gin",
        "--space=strides=1-3,1-3,1-3",
        "--space=seed=0",
        "--trials=6",
        f"--workdir={folder}",
        f"--output={folder}.jsonl",
        *more,
    ]


def records(folder="runs"):
    lines = pathlib.Path(f"{folder}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def strides_of(record):
    return tuple(map(int, record["settings"]["strides"].split(",")))


def make_table(path):
    """Writes the records of all candidates, as a sweep would."""
    found = space.load(["strides=1-3,1-3,1-3", "seed=0"])
    rows = []
    for choices in itertools.product(*found.choices.values()):
        run = found.run(dict(zip(found.choices, choices, strict=True)))
        last, macs = last_accuracy(choices), 7200 // math.prod(choices)
        summary = {"test_accuracy": 1 - last, "validation_accuracy": last}
        summary |= {"seconds": 1.0, "epochs": 3, "images_per_epoch": 10}
        epochs = [
            {"epoch": n, "val_accuracy": last * n / 3, "macs": 1}
            for n in (1, 2, 3)
        ]
        row = {**run._asdict(), "gin_config": "digits.gin", "epochs": epochs}
        rows.append({**row, "summary": summary | {"cost": {"macs": macs}}})
    pathlib.Path(path).write_text("\n".join(map(json.dumps, rows)))


def journal(folder="runs"):
    lines = pathlib.Path(folder, "search.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def started(folder="runs"):
    path = pathlib.Path(folder, "started")
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[0] for line in lines]


class TestSpace:
    def test_ranges_and_other_axes(self):
        found = space.load(
            ["strides=1-2,3,2-4", "method=strided|spectral", "seed=7"]
        )
        assert found.ranges == (((1, 2),), ((3, 3),), ((2, 4),))
        assert found.size == 2 * 1 * 3 * 2
        assert found.choices["stage_3"] == [2, 3, 4]
        assert found.choices["method"] == ["strided", "spectral"]
        chosen = {"stage_1": 2, "stage_2": 3, "stage_3": 4, "method": "strided"}
        run = found.run(chosen)
        assert run.settings == {
            "method": "strided",
            "strides": "2,3,4",
            "seed": 7,
        }
        assert "resnet.Resnet.strides = '2,3,4'" in run.bindings

    def test_ranges_of_height_and_width(self):
        found = space.load(["strides=1-4x2,1-2"])
        assert found.size == 4 * 1 * 2
        run = found.run({"stage_1_1": 3, "stage_1_2": 2, "stage_2": 1})
        assert run.settings["strides"] == "3x2,1"
        assert len({run.name for run in found.runs()}) == 8

    def test_spaces_that_come_along(self):
        paths = list((ROOT / "configs" / "searches").glob("*.toml"))
        assert paths
        for path in paths:
            shown = f"--space=configs/searches/{path.name}"
            assert shown in path.read_text()
            assert space.load([str(path)]).size > 1000

    def test_a_file_like_those_of_sweeps(self, tmp_path):
        path = tmp_path / "space.toml"
        path.write_text(
            'gin_config = "digits.gin"\nbindings = ["a.b = 1"]\n[[grid]]\n'
            'strides = ["1-2,1"]\nplacement = ["before"]\nmethod = ["spectral"]'
        )
        found = space.load([str(path)])
        assert (found.gin_config, found.bindings) == ("digits.gin", ["a.b = 1"])
        assert found.ranges == (((1, 2),), ((1, 1),))
        run = found.run({"stage_1": 1, "stage_2": 1})
        assert "resnet.Resnet.pooling_placement = 'before'" in run.bindings

    @pytest.mark.parametrize(
        "texts, message",
        [
            (["seed=0"], "needs the axis `strides`: .* Received: none"),
            (["strides=2-1,1"], "needs the axis .* Received: 2-1,1"),
            (["strides=0-2"], "needs the axis .* Received: 0-2"),
            (["strides=1.5,2"], "needs the axis .* Received: 1.5,2"),
            (["strides=1x2x3,2"], "needs the axis .* Received: 1x2x3,2"),
            (["strides=1,2|1,3"], r"needs the axis .* Received: 1,2\|1,3"),
            (["strides=1-2", "seed=0|1"], r"`seed` must have one value.*0\|1"),
            (
                ["strides=1-2", "method=inner"],
                "strides stay: strided, sp.* inner",
            ),
            (["strides=1-2", "method=none"], "`method` must be one of"),
            (
                ["strides=1-2", "budget=100000"],
                "; give --budget. Received: budget",
            ),
            (["strides=1-2", "lambda=1"], "an effect on one of its methods"),
            (["strides=1-2", "norm=ortho"], r"methods \(strided\)\. Rec"),
            (["none.toml"], "--space=none.toml cannot be read"),
            (["strides"], "--space must be one TOML file, or axes"),
        ],
    )
    def test_bad_spaces(self, texts, message):
        with pytest.raises(UserError, match=message):
            space.load(texts)

    def test_two_tables(self, tmp_path):
        path = tmp_path / "space.toml"
        path.write_text("[[grid]]\nstrides=['1']\n[[grid]]\nstrides=['2']\n")
        with pytest.raises(UserError, match="must have one table .* 2"):
            space.load([str(path)])


def search_alone(options, reached=last_accuracy, count=10, **more):
    """Makes trials of three stages without any files."""
    found = Study(
        space.load(["strides=1-3,1-3,1-3"]),
        options,
        lambda run: Cost(7200 // math.prod(strides_of(run._asdict())), 3, 10),
        lambda run: True,
        Journal(None, {}),
    )
    while len(found.trials) < count and (trial := found.propose()):
        last = reached(strides_of(trial.run._asdict()))
        for epoch in (1, 2, 3):
            found.report(trial, last * epoch / 3)
            if trial.is_given_up:
                found.prune(trial)
                break
        else:
            found.finish(trial, last, 1 - last)
    return found


@needs_optuna
class TestStudy:
    @pytest.mark.parametrize("sampler", study.SAMPLERS)
    def test_trials_differ_and_are_within_the_bounds(self, sampler):
        options = Options(sampler, budget=1800, at_least=900)
        found = search_alone(options, count=100)
        names = [trial.run.name for trial in found.trials]
        # All that there are, and each once.
        assert len({*names}) == len(names) == 10
        assert {trial.cost.macs for trial in found.trials} <= {1800, 1200, 900}
        assert len(found.rejected) == 27 - len(names)

    @pytest.mark.parametrize("sampler", study.SAMPLERS)
    def test_the_seed_decides(self, sampler):
        def names(seed):
            trials = search_alone(Options(sampler, seed=seed)).trials
            return [trial.run.name for trial in trials]

        assert names(1) == names(1) != names(2)

    def test_tpe_goes_by_accuracy(self):
        best = {}
        for sampler in study.SAMPLERS:
            last = []
            for seed in range(8):
                trials = search_alone(
                    Options(sampler, seed=seed, budget=1800, at_least=300),
                    lambda s: 0.9 - 0.1 * abs(s[0] - 2) - s[1] / 50,
                ).trials
                last += [trial.validation for trial in trials[-4:]]
            best[sampler] = statistics.fmean(last)
        assert best["tpe"] > best["random"]

    def test_tpe_is_told_by_how_much_a_candidate_is_out_of_bounds(self):
        found = search_alone(Options(budget=1800, at_least=900), count=100)
        told = [t for t in found._study.trials if t.state.name != "FAIL"]
        assert len(told) == 27
        for each in told:
            macs = 7200 // math.prod(each.params.values())
            assert each.constraints == {
                "over": math.log(macs / 1800),
                "under": math.log(900 / macs),
            }
            is_out = max(each.constraints.values()) > 0
            assert each.state.name == ("PRUNED" if is_out else "COMPLETE")

    def test_a_median_pruner_gives_up_what_is_below(self):
        # By the strides, so that chance plays no part.
        options = Options("random", "median", seed=3)
        trials = search_alone(options, count=20).trials
        whole = [trial for trial in trials if trial.state == "finished"]
        pruned = [trial for trial in trials if trial.state == "pruned"]
        assert pruned and len(whole) >= 5
        for trial in pruned:
            before = [
                other.accuracies[0]
                for other in whole
                if other.number < trial.number
            ]
            assert trial.accuracies[0] < statistics.median(before)
            assert trial.training_macs == 3 * trial.cost.macs * 10 * 1
        assert whole[0].training_macs == 3 * whole[0].cost.macs * 10 * 3

    def test_whole_runs_are_not_given_up(self):
        # The pruner would, after their last epoch.
        def late(found, trial, last):
            for accuracy in (0.5, 0.5, last):
                found.report(trial, accuracy)
            assert not trial.is_given_up
            found.finish(trial, last, last)

        found = Study(
            space.load(["strides=1-3,1-3,1-3"]),
            Options("random", "median"),
            lambda run: Cost(1, 3, None),
            lambda run: True,
            Journal(None, {}),
        )
        for last in (0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.5):
            late(found, found.propose(), last)

    def test_settings_without_effect_make_no_trials(self):
        found = Study(
            space.load(
                [
                    "strides=1-2,1",
                    "placement=after|before",
                    "method=strided|spectral",
                ]
            ),
            Options(),
            lambda run: Cost(1, 1, None),
            lambda run: True,
            Journal(None, {}),
        )
        names = {found.propose().run.name for _ in range(6)}
        assert {name for name in names if name.startswith("strided")} == {
            "strided_strides-1-1",
            "strided_strides-2-1",
        }
        assert len(names) == 6 and found.propose() is None

    def test_bounds_that_nothing_meets(self, monkeypatch):
        monkeypatch.setattr(study, "_MOST_REJECTED", 10)
        with pytest.raises(UserError, match="None of 10 candidates"):
            search_alone(Options(budget=1))
        monkeypatch.undo()
        told = r"None of all 27 .*=0 and --budget=1: they cost 266 to 7\.2 k"
        with pytest.raises(UserError, match=told):
            search_alone(Options(budget=1))


@needs_optuna
class TestSearch:
    def test_trials_and_their_records(self, python, capsys):
        assert main(arguments("--budget=2400", "--at_least=800")) == 0
        rows = records()
        assert len(rows) == 6 and [row["trial"] for row in rows] == [*range(6)]
        macs = [row["summary"]["cost"]["macs"] for row in rows]
        assert all(800 <= each <= 2400 for each in macs)
        # What is out of the bounds is not even started.
        assert started() == [row["name"] for row in rows]
        for row in rows:
            assert row["gin_config"] == "digits.gin"
            assert row["summary"]["validation_accuracy"] == pytest.approx(
                last_accuracy(strides_of(row))
            )
        # As the report reads them, and as a sweep would have left them.
        assert read_runs(["runs.jsonl"]) == rows
        assert (
            read_run(f"runs/{rows[0]['name']}")["settings"]
            == (rows[0]["settings"])
        )
        out = capsys.readouterr().out
        best = max(rows, key=lambda row: row["summary"]["validation_accuracy"])
        lines = out.split("best of the first")[1].splitlines()
        values = lines[-1].split()
        # Selected by validation: by test accuracy it would be the worst.
        assert values[0] == "6"
        summary = best["summary"]
        assert values[3] == f"{100 * summary['test_accuracy']:.2f}"
        total = sum(3 * each * 10 * 3 for each in macs)
        assert " ".join(values[5:]) == f"{total / 1e3:.1f} k"
        assert "candidates out of the bounds were not trained" in out

    def test_a_finished_search_is_told_again_and_can_grow(self, python, capsys):
        assert main(arguments("--sampler=random")) == 0
        before, told = records(), capsys.readouterr().out
        assert main(arguments("--sampler=random")) == 0
        assert records() == before and len(started()) == 6
        again = capsys.readouterr().out
        assert again == told[told.index("\ntrial") :]
        assert main(arguments("--sampler=random", "--trials=8")) == 0
        assert records()[:6] == before and len(started()) == 8
        assert "mean over all orders" in told

    @pytest.mark.parametrize("how", ["--pruner=median", "--short_epochs=2"])
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_stopped_anywhere_it_ends_as_if_it_were_not(
        self, jobs, how, python, monkeypatch
    ):
        more = [how, f"--jobs={jobs}", "--trials=8"]
        if jobs == 1:
            assert main(arguments(*more, folder="whole")) == 0
        calls = itertools.count()

        class Killed(Exception):
            pass

        def write(self, _write=Journal.write, **event):
            _write(self, **event)
            if next(calls) % 5 == 4:
                raise Killed  # Written, and nothing has come of it.

        monkeypatch.setattr(Journal, "write", write)
        kills = 0
        while True:
            try:
                assert main(arguments(*more)) == 0
                break
            except Killed:
                kills += 1
                assert kills < 50
        assert kills > 4
        if jobs == 1:
            assert journal() == journal("whole")
            assert [r["epochs"] for r in records()] == (
                [r["epochs"] for r in records("whole")]
            )
        finished = [r for r in records() if r["summary"]]
        assert len(records()) == 8
        if how == "--short_epochs=2":
            (best,) = finished
            accuracies = [last_accuracy(strides_of(r)) for r in records()]
            assert last_accuracy(strides_of(best)) == max(accuracies)
        else:
            assert len(finished) >= 5
        # The same trial, in the same folder, until it had ended.
        assert {*started()} == {row["name"] for row in records()}

    @pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
    def test_killed_while_it_trains(self, python):
        (pathlib.Path("runs")).mkdir()
        pathlib.Path("runs/wait_2").touch()
        command = [
            *(PYTHON, "-c"),
            "import runpy, sys; sys.executable, *sys.argv = sys.argv[1:]; "
            "runpy.run_module('diffstride.search', run_name='__main__', "
            "alter_sys=True)",
            *(str(python), *arguments("--trials=2")),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        path = pathlib.Path("runs/search.jsonl")
        deadline = time.monotonic() + 60
        while not (path.exists() and '"epoch": 1' in path.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        before = journal()
        assert len(started()) == 1
        pathlib.Path("runs/wait_2").unlink()
        assert main(arguments("--trials=2")) == 0
        assert journal()[: len(before)] == before
        assert len(started()) == 3 and started()[0] == started()[1]
        assert main(arguments("--trials=2", folder="whole")) == 0
        assert journal()[1:] == journal("whole")[1:]

    def test_a_journal_that_was_cut_short(self, python):
        main(arguments())
        path = pathlib.Path("runs/search.jsonl")
        whole = path.read_text()
        path.write_text(whole[:-30])
        assert main(arguments()) == 0
        assert path.read_text() == whole

    def test_pruned_while_it_trains(self, python, capsys):
        pathlib.Path("runs").mkdir()
        pathlib.Path("runs/slow").touch()
        more = ["--pruner=median", "--sampler=random", "--trials=10"]
        assert main(arguments(*more)) == 0
        pruned = [row for row in records() if row["summary"] is None]
        assert pruned
        for row in pruned:
            workdir = pathlib.Path("runs", row["name"])
            assert not (workdir / "summary.json").exists()
            run = json.loads((workdir / "run.json").read_text())
            assert run["pruned_after"] == len(row["epochs"]) < 3
            assert run["error"] is None
            assert (workdir / "log.txt").read_text() == "Stopped.\n"
        out = capsys.readouterr().out
        assert (
            f"{pruned[0]['name']}, " in out and "given up after epoch 1" in out
        )
        assert len(read_runs(["runs.jsonl"])) == 10

    def test_short_trainings_and_one_to_the_end(self, python, capsys):
        pathlib.Path("runs").mkdir()
        pathlib.Path("runs/slow").touch()
        more = ["--short_epochs=1", "--sampler=random"]
        assert main(arguments(*more)) == 0
        rows, out = records(), capsys.readouterr().out
        (best,) = [row for row in rows if row["summary"]]
        last = [last_accuracy(strides_of(row)) for row in rows]
        assert last_accuracy(strides_of(best)) == max(last)
        assert [len(row["epochs"]) for row in rows if row != best] == [1] * 5
        assert len(best["epochs"]) == 3
        workdir = pathlib.Path("runs", best["name"])
        assert (workdir / "log.txt").exists()
        # It went on; nothing else was begun twice.
        assert sorted(started()) == sorted(
            [*(row["name"] for row in rows), best["name"]]
        )
        assert out.count("training loss ") == 6 and "after 1 epochs" in out
        lines = out.split("best of the first")[1].splitlines()
        macs = [7200 // math.prod(strides_of(row)) for row in rows]
        spent = 3 * 10 * (sum(macs) + 2 * best["summary"]["cost"]["macs"])
        assert lines[-1].split()[0] == "6"
        assert " ".join(lines[-1].split()[5:]) == f"{spent / 1e3:.1f} k"
        # Told again, and with more trials, of which one may be better.
        assert main(arguments(*more)) == 0
        assert records() == rows and len(started()) == 7
        assert main(arguments(*more, "--trials=12")) == 0
        assert records()[:6] == rows or len(started()) == 7 + 6 + 1
        finished = [row for row in records() if row["summary"]]
        last = [last_accuracy(strides_of(row)) for row in records()]
        assert max(last) in [last_accuracy(strides_of(r)) for r in finished]

    def test_one_that_went_on_and_failed(self, python, capsys):
        pathlib.Path("runs").mkdir()
        pathlib.Path("runs/slow").touch()
        more = ["--short_epochs=2", "--sampler=random", "--trials=3"]
        assert main(arguments(*more, folder="other")) == 0
        (best,) = [row for row in records("other") if row["summary"]]

        def fail(study, _promote=Study.promote):
            pathlib.Path("runs/fails").write_text(best["name"])
            return _promote(study)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Study, "promote", fail)
            assert main(arguments(*more)) == 1
        assert "Loss is nan" in capsys.readouterr().out
        pathlib.Path("runs/fails").unlink()
        assert main(arguments(*more)) == 0
        (again,) = [row for row in records() if row["summary"]]
        assert again["name"] == best["name"]

    @pytest.mark.parametrize(
        "more, message",
        [
            (["--short_epochs=0"], "--short_epochs must be at least 1"),
            (["--short_epochs=2", "--pruner=median"], "--pruner must be none"),
            (["--short_epochs=3"], "must be less than the 3 epochs of a whole"),
        ],
    )
    def test_short_trainings_that_cannot_be(self, more, message, python):
        with pytest.raises(UserError, match=message):
            main(arguments(*more))

    def test_a_table_gives_what_training_gives(self, python, capsys):
        make_table("all.jsonl")
        searches = [
            ["--sampler=tpe", "--budget=2400"],
            ["--sampler=random", "--pruner=median", "--trials=9"],
            ["--sampler=tpe", "--pruner=halving", "--trials=6"],
        ]
        for number, more in enumerate(searches):
            capsys.readouterr()
            assert main(arguments(*more, folder=f"trained{number}")) == 0
            told = capsys.readouterr().out
            before = len(started(f"trained{number}"))
            table = ["--table=all.jsonl", "--table_only"]
            again = arguments(*more, *table, folder=f"replayed{number}")
            assert main(again) == 0
            assert capsys.readouterr().out == told and before
            assert not started(f"replayed{number}")

    def test_what_is_not_in_the_table_is_trained(self, python, capsys):
        main(arguments("--trials=3", folder="some"))
        table = "--table=some.jsonl"
        assert main(arguments(table)) == 0
        assert records()[:3] == records("some")
        assert len(started()) == 3
        # Or left out.
        pathlib.Path("runs.jsonl").unlink()
        assert main(arguments(table, "--table_only")) == 0
        names = [row["name"] for row in records()]
        assert sorted(names) == sorted(r["name"] for r in records("some"))
        assert "24 candidates are not in the table" in capsys.readouterr().out

    def test_many_searches_in_a_table(self, python, capsys):
        make_table("all.jsonl")
        flags = ["--table=all.jsonl", "--table_only", "--repeats=6"]
        flags += ["--sampler=random", "--trials=20", "--compare=all.jsonl"]
        assert main(arguments(*flags, folder="none")) == 0
        out = capsys.readouterr().out
        rows = [line.split() for line in out.split("\n\n")[0].splitlines()]
        assert [row[:2] for row in rows[1:]] == [
            [str(count), "6"] for count in (1, 5, 10, 20)
        ]
        best = [float(row[2]) for row in rows[1:]]
        assert best == sorted(best) and best[0] < best[-1]
        assert "method strided, strides 1,2,3" in out
        assert not pathlib.Path("none").exists()

    def test_a_table_of_other_runs(self, python):
        main(arguments("--trials=2", folder="some"))
        more = ["--table=some.jsonl", "--gin_bindings=train.num_epochs = 7"]
        with pytest.raises(UserError, match="no run with the config and the"):
            main(arguments(*more))

    def test_failed_trials_are_tried_again(self, python, capsys):
        # Beyond the tenth, TPE goes by what came before.
        more = ["--trials=13"]
        main(arguments(*more, folder="whole"))
        bad = records("whole")[10]["name"]
        pathlib.Path("runs").mkdir()
        pathlib.Path("runs/fails").write_text(bad)
        assert main(arguments(*more)) == 1
        out = capsys.readouterr().out
        assert "1 runs failed; the same command tries them again" in out
        assert f"  {bad}: Loss is nan" in out
        rows = {row["name"]: row["error"] for row in records()}
        assert len(rows) == 13 and rows[bad] == "Loss is nan"
        pathlib.Path("runs/fails").unlink()
        assert main(arguments(*more)) == 0
        assert [row["error"] for row in records()] == [None] * 13
        assert started().count(bad) == 2 and len(started()) == 14

    def test_no_selection_by_test_images_unless_asked_for(self, python, capsys):
        # As a config says that trains on everything.
        more = ["--gin_bindings=no validation", "--trials=2"]
        with pytest.raises(UserError, match="validates on no others. Pass"):
            main(arguments(*more))
        assert not started()
        # What it says to pass is another search, of which nothing is made yet.
        assert main(arguments("--trials=2")) == 0
        assert main(arguments(*more, "--select=test", folder="test")) == 0
        assert "selected by test accuracy, which" in capsys.readouterr().out
        # Nor from a table.
        rows = records("test")
        for row in rows:
            del row["summary"]["validation_accuracy"]
        pathlib.Path("test.jsonl").write_text("\n".join(map(json.dumps, rows)))
        table = ["--table=test.jsonl", "--table_only", *more]
        with pytest.raises(UserError, match="has no validation_accuracy"):
            main(arguments(*table, folder="again"))
        assert main(arguments(*table, "--select=test", folder="again")) == 0

    def test_another_search_in_a_folder(self, python):
        main(arguments("--trials=1"))
        with pytest.raises(UserError, match="search; choose .* seed: 0, now 1"):
            main(arguments("--search_seed=1"))
        pathlib.Path("mine.jsonl").write_text('{"name": "a", "settings": {}}\n')
        with pytest.raises(UserError, match="holds the run a, which is not"):
            main(arguments("--output=mine.jsonl"))
        with processes.locked(pathlib.Path("runs")):
            processes._LOCK_SECONDS, before = 0, processes._LOCK_SECONDS
            try:
                with pytest.raises(UserError, match="at work in runs"):
                    main(arguments())
            finally:
                processes._LOCK_SECONDS = before

    def test_a_network_that_cannot_be_built(self, python, tmp_path):
        text = 'import json; input(); print(json.dumps({"error": "no"}))'
        (tmp_path / "counter.py").write_text(text)
        with pytest.raises(UserError, match="cannot be counted: no "):
            main(arguments())
        (tmp_path / "counter.py").write_text("raise SystemExit(1)")
        with pytest.raises(UserError, match="cannot be counted: it ended"):
            main(arguments())

    def test_runs_end_with_the_search(self, python, monkeypatch, capsys):
        pathlib.Path("runs").mkdir()
        pathlib.Path("runs/wait_2").touch()
        real = runner.Search._advance

        def advance(search, trial, lock):
            if trial.accuracies:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(search, trial, lock)

        monkeypatch.setattr(runner.Search, "_advance", advance)
        assert main(arguments()) == 128 + signal.SIGTERM
        assert "Stopped. The same command goes on" in capsys.readouterr().err
        pid = int(pathlib.Path("runs/started").read_text().split()[1])
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    @pytest.mark.parametrize(
        "flag, message",
        [
            ("--budget=0", "--at_least and --budget must be"),
            ("--budget=nan", "--at_least and --budget must be"),
            ("--at_least=-1", "--at_least and --budget must be"),
            ("--trials=0", "--trials must be at least 1. Received: 0"),
            ("--jobs=0", "--jobs must be at least 1"),
            ("--table_only", "--table_only needs a --table"),
            ("--table=none.jsonl", "--table must be a .jsonl file .* none"),
            ("--repeats=2", "--repeats needs --table_only"),
            ("--search_seed=-1", "--search_seed must be from 0"),
            ("--gin_config=", "--gin_config is required"),
        ],
    )
    def test_bad_flags(self, flag, message, python):
        with pytest.raises(UserError, match=message):
            main(arguments(flag))


def test_without_optuna(monkeypatch, python):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'diffstride\[search\]'"):
        main(arguments())
    assert not pathlib.Path("runs").exists()


def trial(number, validation, test, macs=5):
    return study.Trial(
        number,
        space.load(["strides=1-9"]).run({"stage_1": number + 1}),
        Cost(macs, 2, 10),
        None,
        [0.1, 0.2],
        state="finished",
        validation=validation,
        test=test,
    )


class TestOutcome:
    def test_the_best_over_all_orders(self):
        pairs = [(0.5, 0.9), (0.7, 0.2), (0.6, 0.8), (0.9, 0.6), (0.1, 0.3)]
        pairs += [(0.2, 0.35)]
        trials = [trial(n, *pair) for n, pair in enumerate(pairs)]
        for best in outcome.expected(trials):
            sums = [
                max(order[: best.count])
                for order in itertools.permutations(pairs)
            ]
            validation, test = (
                statistics.fmean(v) for v in zip(*sums, strict=True)
            )
            assert best.validation == pytest.approx(validation)
            assert best.test == pytest.approx(test)
            assert best.training_macs == best.count * 3 * 5 * 10 * 2
        assert [best.count for best in outcome.expected(trials)] == [1, 5, 6]

    def test_the_best_in_order(self):
        trials = [trial(0, 0.5, 0.9), trial(1, 0.7, 0.2), trial(2, 0.6, 0.8)]
        trials[0].state = "pruned"
        # Nothing has ended well among the first.
        assert outcome.in_order(trials[:1]) == []
        assert outcome.in_order(trials) == [outcome.Best(3, 0.7, 0.2, 900)]

    def test_training_counts_each_epoch_as_it_was(self):
        rows = [{"macs": 100}, {"macs": 60}]
        record = {"epochs": rows, "summary": {"images_per_epoch": 10}}
        assert training_macs(record) == 3 * 10 * 160
        trials = [{"strides": [[1]], "loss": None, "macs": 7, "epochs": 2}] * 4
        tried = {**record["summary"], "hardened": {"trials": trials}}
        tried = training_macs({**record, "summary": tried})
        assert tried == 3 * 10 * (160 + 4 * 2 * 7)
        record["summary"] = None
        assert training_macs(record) is None
        assert training_macs(record, images=5) == 3 * 5 * 160

    def test_runs_to_compare_with(self):
        def record(seed, **summary):
            return {
                "name": "a",
                "settings": {"method": "outer", "seed": seed},
                "epochs": [{"macs": 50}, {"macs": 20}],
                "summary": {"cost": {"macs": 20}, **summary},
            }

        text = outcome.compared(
            [record(0, test_accuracy=0.8), record(1, test_accuracy=0.9)], 100
        )
        assert text.splitlines()[1].split() == (
            "method outer 2 20 - 85.00 ± 7.07 % 21.0 k".split()
        )


def test_costs_are_counted_once(python):
    found = space.load(["strides=1-3,1-3"])
    run = found.run({"stage_1": 1, "stage_2": 2})

    def counter(command_fn):
        return costs.Counter(
            command_fn, pathlib.Path("costs.jsonl"), pathlib.Path("log")
        )

    command = ["python", "-m", "diffstride.main"]
    first = counter(lambda run: command)
    assert first.cost(run, True) == Cost(3600, 3, 10)
    first.close()
    rows = pathlib.Path("costs.jsonl").read_text()
    assert counter(lambda run: command).cost(run, True) == Cost(3600, 3, 10)
    assert pathlib.Path("costs.jsonl").read_text() == rows
    # Of other settings, what was counted says nothing.
    other = counter(lambda run: [*command, "--gin_bindings=no validation"])
    with pytest.raises(UserError, match="validates on no others"):
        other.cost(run, True)
    assert other.cost(run, False) == Cost(3600, 3, 10)
    with pytest.raises(UserError, match="validates on no others"):
        other.cost(run, True)
    other.close()


# Trains for real: the tool as a person starts it.
REAL = [
    *(sys.executable, "-m", "diffstride.search", "--gin_config=digits.gin"),
    *("--space=strides=1-2,1-2,2", "--space=seed=0", "--sampler=random"),
    *("--pruner=median", "--trials=3", "--budget=200000"),
    "--gin_bindings=train.num_epochs = 3",
    "--gin_bindings=resnet.Resnet.filters = [4, 4, 8]",
    "--gin_bindings=data.load_datasets.image_size = 8",
    "--gin_bindings=data.load_datasets.train_split = 'train[:640]'",
    "--gin_bindings=data.load_datasets.validation_split = 'train[640:]'",
]


@pytest.mark.slow
@needs_optuna
def test_a_killed_search_ends_with_the_same_trials(data_dir, tmp_path):
    found = {}
    for kills in (0, 3):
        folder = tmp_path / str(kills)
        command = [*REAL, f"--workdir={folder}", f"--data_dir={data_dir}"]
        command.append(f"--output={folder}.jsonl")
        path = folder / "search.jsonl"
        for moment in ('"settings"', '"trial": 0, "epoch": 1', '"trial": 1')[
            :kills
        ]:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while not (path.exists() and moment in path.read_text()):
                assert process.poll() is None
                time.sleep(0.02)
            process.kill()
            process.wait()
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = read_runs([f"{folder}.jsonl"])
        for row in rows:
            for each in (row["summary"] or {}, *row["epochs"]):
                each.pop("seconds", None)
                each.pop("steps_per_second", None)
        found[kills] = (path.read_text(), rows)
        told = done.stdout[done.stdout.index("\ntrial") :]
    assert found[3] == found[0]
    _, rows = found[0]
    assert len(rows) == 3 and all(row["summary"] for row in rows)
    for row, line in zip(rows, (folder / "costs.jsonl").open(), strict=False):
        assert row["summary"]["cost"]["macs"] <= 200_000
        assert json.loads(line)["validates"]
    # From the table of its own trials it comes to the same.
    command += [f"--table={folder}.jsonl", "--table_only", "--trials=3"]
    command.remove(f"--output={folder}.jsonl")
    command.append(f"--workdir={tmp_path / 'again'}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(told)
