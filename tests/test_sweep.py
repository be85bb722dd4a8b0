"""Sweeps: the plan, and what becomes of it when things go wrong."""

import inspect
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import gin
import pytest
from trainers import replace_training

import diffstride
from diffstride import DiffStride, config, settings
from diffstride.errors import UserError
from diffstride.runs import read_run, read_runs
from diffstride.sweep import grid, processes, runner
from diffstride.sweep.__main__ import main

ROOT = pathlib.Path(__file__).resolve().parent.parent


def plan(*texts):
    return grid.plan(grid.load(texts).products)


class TestSettings:
    def test_prefixes_that_reach_some_methods_begin_a_parameter(self):
        names = [n for names in settings.PARAMETERS.values() for n in names]
        for beginning, methods in settings._REACH.items():
            rival = beginning in [
                f"pooling.{layer}." for layer in settings.RIVALS.values()
            ]
            known = any(name.startswith(beginning) for name in names)
            assert known or rival, beginning
            assert set(methods) <= set(settings.METHODS)

    @pytest.mark.parametrize("network", settings.NETWORKS)
    def test_settings_reach_the_network_that_is_named(self, network):
        given = {"network": network, "strides": "1,2", "placement": "before"}
        lines = settings.bindings({"method": "spectral", **given})
        target, names = settings.NETWORKS[network]
        assert f"train.train.model_cls = @{target}" in lines
        strides = names.get("resnet.Resnet.strides", f"{target}.strides")
        assert f"{strides} = '1,2'" in lines
        where = "resnet.Resnet" if target.startswith("resnet.") else target
        pooling = "@pooling.FixedSpectralPooling"
        assert lines[0] == f"{where}.pooling_cls = {pooling}"
        assert f"{where}.pooling_placement = 'before'" in lines
        config.load(["cifar10.gin"], lines)
        gin.clear_config()

    def test_rivals_are_layers_that_are_reached_by_what_they_know(self):
        for method, layer in settings.RIVALS.items():
            lines = settings.bindings(
                {
                    **{"method": method, "strides": "1,2", "smoothness": 1},
                    **{"norm": "forward", "shared": True, "budget": 9},
                    **{"placement": "before", "stride_lr": 2, "lambda": 0.1},
                    "pooling.DiffStride.cropping": False,
                }
            )
            assert lines[0] == f"resnet.Resnet.pooling_cls = @pooling.{layer}"
            arguments = inspect.signature(getattr(diffstride, layer)).parameters
            own = [line for line in lines[1:] if line.startswith("pooling.")]
            for line in own:
                cls, name = line.partition(" = ")[0].split(".")[1:]
                assert cls == layer
                assert name in arguments
            learned = method in settings.LEARNED
            assert ("train.train.budget = 9" in lines) == learned
            assert len(own) == {"flc": 1, "dynopool": 2, "dct": 4}.get(
                method, 0
            )

    def test_without_a_method_rivals_are_not_meant(self):
        assert settings.bindings({"norm": "forward", "smoothness": 1}) == [
            "pooling.DiffStride.norm = 'forward'",
            "pooling.FixedSpectralPooling.norm = 'forward'",
            "pooling.DiffStride.smoothness_factor = 1",
        ]

    def test_ramps_are_those_of_the_layer(self):
        for ramp in settings.RAMPS:
            DiffStride(ramp=ramp)


class TestPlan:
    def test_all_combinations_seeds_slowest(self):
        runs = plan("seed=0|1", "method=strided|outer", "strides=1,2|1,3")
        assert [run.name for run in runs] == [
            f"{method}_strides-{strides}_seed-{seed}"
            for seed in "01"
            for method in ("strided", "outer")
            for strides in ("1-2", "1-3")
        ]
        assert runs[3].settings == {
            "method": "outer",
            "strides": "1,3",
            "seed": 0,
        }
        assert runs[3].bindings == [
            "resnet.Resnet.pooling_cls = @pooling.DiffStride",
            "pooling.DiffStride.ramp = 'outer'",
            "resnet.Resnet.strides = '1,3'",
        ]

    def test_settings_that_do_not_reach_a_method_make_no_runs(self):
        runs = plan(
            "method=strided|spectral|inner",
            "norm=forward|ortho",
            "lambda=0|0.1",
            "smoothness=4",
            "shared=true",
            "stride_lr=10",
            "pooling.FixedSpectralPooling.data_format=None",
        )
        assert [run.settings for run in runs[:3]] == [
            {"method": "strided"},
            *(
                {
                    "method": "spectral",
                    "norm": norm,
                    "pooling.FixedSpectralPooling.data_format": "None",
                }
                for norm in ("forward", "ortho")
            ),
        ]
        assert runs[0].bindings == ["resnet.Resnet.pooling_cls = None"]
        assert runs[2].bindings == [
            "resnet.Resnet.pooling_cls = @pooling.FixedSpectralPooling",
            "pooling.FixedSpectralPooling.norm = 'ortho'",
            "pooling.FixedSpectralPooling.data_format = None",
        ]
        assert len(runs) == 1 + 2 + 4
        assert runs[-1].settings == {
            "method": "inner",
            "smoothness": 4,
            "norm": "ortho",
            "lambda": 0.1,
            "shared": True,
            "stride_lr": 10,
        }
        assert runs[-1].bindings[2:] == [
            "pooling.DiffStride.smoothness_factor = 4",
            "pooling.DiffStride.norm = 'ortho'",
            "train.train.stride_cost_weight = 0.1",
            "pooling.DiffStride.shared_stride = True",
            "pooling.DiffStride.stride_lr_multiplier = 10",
        ]

    def test_without_a_method_nothing_is_left_out(self):
        (run,) = plan("norm=forward")
        assert run.bindings == [
            "pooling.DiffStride.norm = 'forward'",
            "pooling.FixedSpectralPooling.norm = 'forward'",
        ]

    def test_bindings_are_those_that_the_config_knows(self):
        """A parameter that is renamed there is renamed in `settings`, too."""
        runs = plan(
            "method=strided|spectral|flc|dynopool|outer|inner|straight_through|"
            "dct",
            "strides=1,1,2,2",
            "smoothness=4|0.5",
            "norm=forward",
            "shared=true",
            "stride_lr=10",
            "lambda=0.1",
            "final_smoothness=0",
            "placement=before",
            "budget=700000",
            "harden=pooled",
            "finetune=3",
            "restart=true",
            "harden_by=training",
            "trials=2",
            "trial_epochs=1",
            "size_step=2",
            "network=resnet",
            "task=family",
            "keras.optimizers.SGD.learning_rate=0.1",
            "train.train.devices=['CPU:0']",
            "data.load_datasets.augment_fn=@data.pad_crop_flip",
        )
        assert len(runs) == 4 + 4 * 2
        names = {b.partition(" = ")[0] for run in runs for b in run.bindings}
        for axis in settings.PARAMETERS:
            assert names.issuperset(settings.PARAMETERS[axis]), axis
        for run in runs:
            try:
                config.load(["digits.gin"], run.bindings)
            finally:
                gin.clear_config()

    def test_a_file_is_the_union_of_its_tables(self, tmp_path):
        path = tmp_path / "grid.toml"
        path.write_text(
            """
            gin_config = "digits.gin"
            bindings = ["train.num_epochs = 2"]
            [[grid]]
            method = ["outer", "strided"]
            strides = [[1, 1.5], "1, 3"]
            seed = [0, 1]
            [[grid]]
            seed = [0.0]
            strides = ["1,3"]
            method = ["inner", "outer"]
            """
        )
        loaded = grid.load([str(path)])
        assert loaded.gin_config == "digits.gin"
        assert loaded.bindings == ["train.num_epochs = 2"]
        runs = grid.plan(loaded.products)
        assert [run.name for run in runs] == [
            "outer_strides-1-1.5_seed-0",
            "outer_strides-1-3_seed-0",
            "strided_strides-1-1.5_seed-0",
            "strided_strides-1-3_seed-0",
            "inner_strides-1-3_seed-0",
            "outer_strides-1-1.5_seed-1",
            "outer_strides-1-3_seed-1",
            "strided_strides-1-1.5_seed-1",
            "strided_strides-1-3_seed-1",
        ]
        on_the_line = plan("method=outer|strided", "strides=1,1.5|1,3")
        assert on_the_line[0].bindings == runs[0].bindings

    def test_grids_that_come_along(self):
        paths = sorted((ROOT / "configs" / "sweeps").glob("*.toml"))
        assert paths
        for path in paths:
            assert f"--grid=configs/sweeps/{path.name}" in path.read_text()
            loaded = grid.load([str(path)])
            assert (ROOT / "configs" / loaded.gin_config).exists()
            run = grid.plan(loaded.products)[-1]
            try:
                bindings = [*loaded.bindings, *run.bindings]
                config.load([loaded.gin_config], bindings)
            finally:
                gin.clear_config()

    @pytest.mark.parametrize(
        "texts, message",
        [
            (["seeds=0"], "must be one of method, strides, .*Received: seeds"),
            (["method=most"], "one of strided, .*Received: 'most'"),
            (["seed=0.5"], "`seed` must be a whole number .* Received: 0.5"),
            (["seed=0", "seed=1"], "each given once. Received: --grid=seed=1"),
            (["seed="], "The axis seed needs a list of values"),
            (["outer"], "must be one TOML file, or axes such as"),
            (["none.toml"], "--grid=none.toml cannot be read"),
            (["a.b=c d|c-d"], "The folder b-c-d would hold two runs"),
        ],
    )
    def test_bad_grids(self, texts, message):
        with pytest.raises(UserError, match=message):
            plan(*texts)

    @pytest.mark.parametrize(
        "text",
        [
            "seed = [0]",
            "grid = 1",
            "bindings = 'a = 1'",
            "[[grid",
            "",
            "# \xff",
            "\0",
            "[grid]\nseed = [0]",
            "grid = [1]",
            "gin_config = 7",
            "bindings = [[]]",
            "[[grid]]\nseed = [0]\nseed = [1]",
        ],
    )
    def test_bad_files(self, text, tmp_path):
        path = tmp_path / "grid.toml"
        path.write_text(text, encoding="latin1")
        with pytest.raises(UserError, match="grid.toml (must hold|cannot be)"):
            grid.load([str(path)])

    @pytest.mark.parametrize(
        "line",
        [
            "strides = [[]]",
            "strides = [[[]]]",
            "strides = [{}]",
            "strides = ['1,x']",
            "strides = ['1,,2']",
            "strides = [[1, [2, 2]]]",
            "strides = [nan]",
            "strides = [0]",
            "strides = [true]",
            "strides = []",
            "norm = ['']",
            "norm = [' ']",
            "norm = 'ortho'",
            "lambda = [inf]",
            "seed = [-1]",
            "seed = [true]",
            "seed = ['a']",
            "seed = [4294967296]",
            "method = [['outer']]",
            "method = [1]",
            "'.' = [1]",
            "'a.' = [1]",
            r'"a.b = 1\nimport os" = [1]',
        ],
    )
    def test_bad_values(self, line, tmp_path):
        path = tmp_path / "grid.toml"
        path.write_text(f"[[grid]]\n{line}\n")
        axis = line.split()[0]
        expected = f"(`{axis}` must be|The axis {axis} needs|axis of --grid mu)"
        with pytest.raises(UserError, match=expected):
            grid.load([str(path)])

    @pytest.mark.parametrize(
        "text, strides",
        [
            ("strides=1,2", "1,2"),
            ("strides=1.0, 2.5", "1.0,2.5"),
            ("strides=[1,1,2]", "[1,1,2]"),
            ("strides=[(1, 2), 1]", "[(1,2),1]"),
            ("strides=%starts", "%starts"),
        ],
    )
    def test_forms_of_strides(self, text, strides):
        (run,) = plan(text)
        assert run.settings == {"strides": strides}


# What a trainer leaves, without training. It is called as diffstride.main is:
# {behaviour} comes before the result.
FAKE = """
import json, os, pathlib, re, signal, sys, time
flags = re.findall(r"--(\\w+)=(.*)", "\\n".join(sys.argv))
flags = dict(flag for flag in flags if flag[0] != "gin_bindings")
bindings = [a[15:] for a in sys.argv if a.startswith("--gin_bindings=")]
workdir = pathlib.Path(flags["workdir"])
name, sweep_dir = workdir.name, workdir.parent
with (sweep_dir / "started").open("a") as file:
    print(name, os.getpid(), file=file)

def wait_for(condition):
    for _ in range(3000):  # Tests that fail shall end, too.
        if condition():
            return
        time.sleep(0.01)
    sys.exit("waited in vain")

{behaviour}
row = {{"epoch": 1, "loss": 0.5}}
(workdir / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
summary = {{"test_accuracy": 0.9, "seconds": 90.0, "seed": flags.get("seed")}}
(workdir / "summary.json").write_text(json.dumps(summary))
"""
GRID = ("--grid=method=strided|outer", "--grid=seed=0|1")
NAMES = [f"{m}_seed-{s}" for s in (0, 1) for m in ("strided", "outer")]


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """`trainer(behaviour)` sets what runs do from then on, in `tmp_path`."""
    return replace_training(FAKE, "", tmp_path, monkeypatch)


def arguments(*more):
    return [
        "sweep",
        "--gin_config=digits.gin",
        "--workdir=runs",
        "--output=out/table.jsonl",
        *GRID,
        *more,
    ]


def started():
    path = pathlib.Path("runs/started")
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[0] for line in lines]


def table():
    lines = pathlib.Path("out/table.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class TestSweep:
    def test_runs_and_their_records(self, trainer, capsys):
        assert main(arguments("--gin_bindings=a.b = 1")) == 0
        assert started() == NAMES
        records = table()
        assert [record["name"] for record in records] == NAMES
        assert records[1] == {
            "name": "outer_seed-0",
            "settings": {"method": "outer", "seed": 0},
            "gin_config": "digits.gin",
            "bindings": [
                "a.b = 1",
                "resnet.Resnet.pooling_cls = @pooling.DiffStride",
                "pooling.DiffStride.ramp = 'outer'",
            ],
            "jobs": 1,
            "error": None,
            "summary": {"test_accuracy": 0.9, "seconds": 90.0, "seed": "0"},
            "epochs": [{"epoch": 1, "loss": 0.5}],
        }
        out = capsys.readouterr().out
        assert "[1/4] strided_seed-0: 90.00 %, 90 s; about 4 min left" in out
        assert "[4/4] outer_seed-1: 90.00 %, 90 s\n" in out
        # Both forms, read back.
        assert read_runs(["out/table.jsonl"]) == records
        by_name = sorted(records, key=lambda record: record["name"])
        assert read_runs(["runs"]) == by_name
        assert read_runs(["runs/outer_seed-0"]) == [records[1]]

    def test_finished_runs_are_skipped(self, trainer, monkeypatch):
        assert main(arguments("--grid=norm=ortho")) == 0
        before = table()
        pathlib.Path("out/table.jsonl").unlink()
        trainer("sys.exit('started')")
        assert main(arguments("--grid=norm=ortho")) == 0
        assert table() == before
        # A grid that has grown makes what is new.
        trainer()
        main(arguments("--grid=norm=ortho|forward"))
        assert len(started()) == 6
        assert len(table()) == 6

    def test_paths_at_home(self, trainer, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("HOME", str(tmp_path))
        pathlib.Path("grid.toml").write_text("[[grid]]\nseed = [0]\n")
        command = ["sweep", "--gin_config=digits.gin", "--grid=~/grid.toml"]
        command += ["--workdir=~/a/runs", "--output=~/b/table.jsonl"]
        assert main(command) == 0
        assert (tmp_path / "a" / "runs" / "seed-0" / "run.json").exists()
        assert (tmp_path / "b" / "table.jsonl").exists()
        assert not pathlib.Path("~").exists()

    def test_imports_are_allowed_to_runs_by_a_flag(self, trainer):
        flag = "--allow_imports"
        trainer(f"if {flag!r} not in sys.argv: sys.exit('error: refused')")
        assert main(arguments()) == 1
        assert {record["error"] for record in table()} == {"refused"}
        assert main(arguments(flag)) == 0
        # Which is not a setting of theirs.
        assert main(arguments()) == 0

    def test_other_settings_in_a_folder_are_refused(self, trainer):
        main(arguments())
        for more in (
            ["--gin_bindings=train.num_epochs = 3"],
            ["--gin_config=cifar10.gin"],
        ):
            with pytest.raises(UserError, match="runs/strided_seed-0 holds a"):
                main(arguments(*more))
        path = pathlib.Path("runs/strided_seed-0/run.json")
        path.unlink()  # As if diffstride.main had been called by hand.
        with pytest.raises(UserError, match="runs/strided_seed-0 holds a"):
            main(arguments())

    def test_a_failed_run_is_recorded_and_the_rest_go_on(self, trainer, capsys):
        trainer(
            """
            if name == "outer_seed-0":
                print("Traceback")
                print("error: Loss is nan at step 2.", file=sys.stderr)
                print("more", flush=True)
                sys.exit(1)
            if name == "strided_seed-1":
                print("  File ...")
                print("some.errors.BadError: bad:", flush=True)
                print("[Op:__inference_5]", flush=True)
                sys.exit(3)
            if name == "outer_seed-1":
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
        assert main(arguments()) == 1
        assert started() == NAMES
        errors = [
            None,
            "Loss is nan at step 2.",
            "some.errors.BadError: bad:",
            "Killed by SIGKILL",
        ]
        assert [record["error"] for record in table()] == errors
        assert table()[1]["summary"] is None
        out = capsys.readouterr().out
        assert "3 runs failed; the same command tries them again" in out
        assert "  outer_seed-0: Loss is nan at step 2. (runs/outer" in out
        # They are tried again, what is finished is not.
        trainer("if name == 'outer_seed-1': sys.exit(0)")
        assert main(arguments()) == 1
        errors = [None, None, None, "It left no summary.json"]
        assert [record["error"] for record in table()] == errors
        trainer()
        assert main(arguments()) == 0
        assert [record["error"] for record in table()] == [None] * 4
        assert started() == [*NAMES, *NAMES[1:], NAMES[3]]

    def test_a_damaged_run_is_made_again(self, trainer, capsys):
        # As far as `diffstride.main` had come.
        trainer("(workdir / 'config.gin').write_text('')")
        main(arguments())
        before = table()
        outer = pathlib.Path("runs/outer_seed-0")
        for number, (name, content) in enumerate(
            [
                ("summary.json", ""),
                ("summary.json", '{"test_accuracy": 0.9'),
                ("summary.json", "null"),
                ("summary.json", "{}"),
                ("summary.json", '{"test_accuracy": "?", "seconds": 1}'),
                ("summary.json", "\0" * 80),
                ("run.json", ""),
                ("run.json", "[]"),
                ("run.json", '{"name": "outer_seed-0"}'),
                ("run.json", "\xff"),
                ("metrics.jsonl", "null\n"),
            ],
            start=1,
        ):
            (outer / name).write_text(content, encoding="latin1")
            capsys.readouterr()
            assert main(arguments("--dry_run")) == 0
            assert "1 damaged" in capsys.readouterr().out
            assert main(arguments()) == 0
            assert table() == before
            assert started() == [*NAMES, *["outer_seed-0"] * number]
        # Without a config there is nothing that says which run it was.
        (outer / "config.gin").unlink()
        (outer / "run.json").write_text("{")
        with pytest.raises(UserError, match=f"^{outer}/run.json: it must be J"):
            main(arguments())

    def test_a_run_that_stays_damaged_does_not_stop_the_others(self, trainer):
        trainer(
            """
            (workdir / 'config.gin').write_text('')
            if name == "strided_seed-0":
                (workdir / "metrics.jsonl").write_text("x\\n")
                sys.exit("error: metrics.jsonl, line 1")
            """
        )
        assert main(arguments()) == 1
        assert main(arguments()) == 1
        assert started() == [*NAMES, NAMES[0]]
        assert [each["name"] for each in table()] == NAMES[1:]

    @pytest.mark.parametrize(
        "name",
        ["runs/strided_seed-0", "runs/strided_seed-0/log.txt/", "out", "runs"],
    )
    def test_what_stands_in_the_way_is_named(self, name, trainer):
        path = pathlib.Path(name)
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text("precious")
        with pytest.raises(UserError, match=f"{path}\\b"):
            main(arguments())
        assert path.is_dir() or path.read_text() == "precious"
        assert started() == []

    def test_a_full_disk_stops_the_sweep(self, trainer):
        trainer()
        workdir = pathlib.Path("runs/outer_seed-0")
        workdir.mkdir(parents=True)
        (workdir / "unfinished.run.json").symlink_to("/dev/full")
        with pytest.raises(UserError, match="run.json cannot .* No space left"):
            main(arguments())
        assert main(arguments()) == 0
        assert [each["name"] for each in table()] == NAMES

    def test_a_setting_without_effect_ends_the_run(self, trainer):
        trainer(
            """
            if name.startswith("outer"):
                print("`resnet.Resnet.strides` is set in --gin_bindings, line "
                      "1, but nothing in this run uses it", flush=True)
                print("`pooling.FixedSpectralPooling.norm` is set in "
                      "--gin_bindings, but nothing in this run uses it")
                time.sleep(60)
            """
        )
        assert main(arguments("--grid=strides=1,2", "--grid=norm=ortho"))
        errors = [record["error"] for record in table()]
        assert errors[0] is errors[2] is None
        for error in errors[1], errors[3]:
            assert error.startswith("strides has no effect with this config")

    def test_what_diffstride_main_says_of_such_a_setting(self):
        for text, axes in (
            ("norm=ortho", "norm"),
            ("strides=1,2", "strides"),
            ("seed=0", None),
        ):
            (run,) = plan(text)
            said = "\n".join(config.unused(run.bindings, operative_text=""))
            error = runner.without_effect(run, said)
            assert error.startswith(f"{axes} has no") if axes else error is None
        # The layer that it is meant for is there.
        (run,) = plan("norm=ortho")
        said = config.unused(run.bindings, "DiffStride.norm = 'ortho'")
        assert runner.without_effect(run, "\n".join(said)) is None

    def test_several_at_once_share_the_cores(self, trainer, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        trainer(
            """
            started = lambda: (sweep_dir / "started").read_text().split("\\n")
            wait_for(lambda: len(started()) > 2)
            cores = [os.environ[n] for n in
                     ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")]
            assert cores == ["4", "4"], cores
            """
        )
        assert main(arguments("--jobs=2")) == 0
        assert [record["jobs"] for record in table()] == [2] * 4

    def test_a_dry_run_tells_and_writes_nothing(self, trainer, capsys):
        assert main(arguments("--dry_run")) == 0
        assert not pathlib.Path("runs").exists()
        assert not pathlib.Path("out").exists()
        trainer("if name == 'outer_seed-0': sys.exit('no')")
        main(arguments())
        pathlib.Path("runs/strided_seed-1/summary.json").unlink()
        capsys.readouterr()
        before = {p: p.stat().st_mtime_ns for p in pathlib.Path().rglob("*")}
        assert main(arguments("--dry_run")) == 0
        assert capsys.readouterr().out.splitlines() == [
            "   1  finished  strided_seed-0",
            "   2  failed    outer_seed-0",
            "   3  started   strided_seed-1",
            "   4  finished  outer_seed-1",
            "4 runs in runs: 2 finished, 1 failed, 1 started",
        ]
        after = {p: p.stat().st_mtime_ns for p in pathlib.Path().rglob("*")}
        assert after == before

    def test_time_left_goes_by_method(self, trainer, monkeypatch, capsys):
        trainer("method = name.split('_')[0]")
        path = pathlib.Path("trainer.py")
        text = path.read_text()
        text = text.replace("90.0", "{'strided': 60, 'outer': 600}[method]")
        path.write_text(text)
        main(arguments("--grid=strides=1,2|1,3"))
        left = [
            line.partition("about ")[2]
            for line in capsys.readouterr().out.splitlines()
            if line.startswith("[")
        ]
        # Minutes: 7 as the only one known; then 3 + 30, 2 + 30, 2 + 20, ...
        assert left == [
            "7 min left",
            "6 min left",
            "32 min left",
            "22 min left",
            "21 min left",
            "20 min left",
            "10 min left",
            "",
        ]

    def test_runs_end_when_the_sweep_is_stopped(self, trainer, capsys):
        trainer("os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
        before = signal.getsignal(signal.SIGTERM)
        assert main(arguments("--jobs=2")) == 128 + signal.SIGTERM
        assert "Stopped." in capsys.readouterr().err
        assert signal.getsignal(signal.SIGTERM) == before
        with processes.locked(pathlib.Path("runs")):
            pids = pathlib.Path("runs/started").read_text().split()[1::2]
            for pid in pids:
                with pytest.raises(ProcessLookupError):
                    os.kill(int(pid), 0)
        trainer()
        assert main(arguments()) == 0
        assert [record["error"] for record in table()] == [None] * 4

    def test_two_sweeps_in_a_folder(self, trainer, monkeypatch):
        monkeypatch.setattr(processes, "_LOCK_SECONDS", 0)
        with processes.locked(pathlib.Path("runs")):
            with pytest.raises(UserError, match="at work in runs; wait until"):
                main(arguments())
        assert started() == []

    def test_what_is_left_of_a_sweep_keeps_others_out(self, tmp_path):
        # Where the system does not end a child together with its parent.
        with processes.locked(tmp_path) as lock:
            child = processes.Process(["sleep", "60"], tmp_path / "log", lock)
        try:
            with (tmp_path / "sweep.lock").open() as file:
                assert not processes.try_to_lock(file.fileno())
                child.kill()
                assert processes.try_to_lock(file.fileno())
        finally:
            child.kill()

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with (
            pytest.raises(UserError, match="--workdir must be a folder that"),
            processes.locked(tmp_path / "file" / "runs"),
        ):
            pass

    @pytest.mark.parametrize(
        "content",
        [
            '{"name": "strided_seed-7"}\n',
            "# Notes\n",
            "[1]\n",
            "precious",  # Without a line's end, which makes no record.
            '{"name": "strided_seed-0"}',
            '{"name": "strided_seed-0", "settings": {}}',  # Of another sweep.
            '{"name": "strided_seed-7", "settings": {}}',
            "[tool]\nname = 'x'",
            '{"epoch": 1}\n',
            "\xff\xfe",
        ],
    )
    def test_an_output_with_other_content_is_left_alone(self, content, trainer):
        trainer()
        output = pathlib.Path("runs.jsonl")
        output.write_text(content, encoding="latin1")
        message = "runs.jsonl,? (which )?holds (1 runs .* in runs, such|some)"
        with pytest.raises(UserError, match=message):
            main(arguments(f"--output={output}"))
        assert output.read_text(encoding="latin1") == content
        assert started() == []

    def test_the_table_of_another_sweep_is_left_alone(self, trainer):
        main(arguments())
        before = table()
        other = ["--workdir=other", "--gin_config=cifar10.gin"]
        main([*arguments(), *other, "--output=other.jsonl"])
        # Its runs have the same names.
        with pytest.raises(UserError, match="holds 4 runs that are not in oth"):
            main([*arguments(), *other])
        assert table() == before
        pathlib.Path("out/null").symlink_to("/dev/null")
        with pytest.raises(UserError, match="it is no file"):
            main(arguments("--output=out/null"))

    @pytest.mark.parametrize("more", [["--jobs=0"], ["--gin_config="]])
    def test_bad_flags(self, more, trainer):
        with pytest.raises(UserError, match="Received: 0|is required"):
            main(arguments(*more))


# Runs the tool as a person does, with another Python in the place of ours.
DRIVER = """
import runpy, sys
sys.executable, *sys.argv = sys.argv[1:]
try:
    runpy.run_module("diffstride.sweep", run_name="__main__", alter_sys=True)
finally:
    heavy = {"keras", "numpy", "pandas", "tensorflow", "gin"}
    assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)
"""


def start_sweep(*more, python=sys.executable):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(python), *arguments(*more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, process):
    """Waits as long as the process lives."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def is_alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system of Linux")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_sweep_that_is_ended_leaves_no_run_behind(how, trainer, tmp_path):
    trainer("if name == 'outer_seed-0': wait_for((sweep_dir / 'go').exists)")
    python = tmp_path / "python"
    # Instead of `python -m diffstride.main`.
    python.write_text(
        f'#!/bin/sh\nshift 2\nexec {sys.executable} -S trainer.py "$@"\n'
    )
    python.chmod(0o755)
    process = start_sweep(python=python)
    wait_until(lambda: started() == NAMES[:2], process)
    pid = int(pathlib.Path("runs/started").read_text().split()[-1])
    assert is_alive(pid)
    process.send_signal(getattr(signal, how))
    _, errors = process.communicate()
    if how == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
        with processes.locked(pathlib.Path("runs")):  # Waits for the run's end.
            pass
    else:
        assert process.returncode == 128 + getattr(signal, how)
        assert errors == "Stopped. The same command goes on from here.\n"
    assert not is_alive(pid)
    assert [record["name"] for record in table()] == NAMES[:1]

    pathlib.Path("runs/go").touch()
    process = start_sweep(python=python)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "4 runs in runs: 1 finished, 1 started, 2 to do" in out
    assert [record["name"] for record in table()] == NAMES
    assert started() == [*NAMES[:2], *NAMES[1:]]


@pytest.mark.slow  # Above with a trainer of its own; test_train.py kills runs.
def test_a_killed_sweep_ends_with_the_same_table(
    data_dir, tmp_path, monkeypatch
):
    more = [
        f"--data_dir={data_dir}",
        "--grid=method=strided",  # Which is the quickest to start.
        "--grid=strides=1,2",
        *(
            f"--gin_bindings={binding}"
            for binding in (
                "train.num_epochs = 2",
                "resnet.Resnet.filters = [4, 4]",
                "data.load_datasets.image_size = 8",
                "data.load_datasets.augment_fn = None",
                "data.load_datasets.train_split = 'train[:256]'",
                "data.load_datasets.test_split = 'test[:128]'",
            )
        ),
    ]
    monkeypatch.setattr(sys.modules[__name__], "GRID", ("--grid=seed=0",))
    tables = {}
    for kills in (0, 1):
        folder = tmp_path / str(kills)
        folder.mkdir()
        monkeypatch.chdir(folder)
        run = folder / "runs" / "strided_strides-1-2_seed-0"
        backup = run / "backup" / "latest.weights.h5"
        for _ in range(kills):
            process = start_sweep(*more)
            wait_until(backup.exists, process)
            process.kill()
            process.communicate()
        process = start_sweep(*more)
        out, errors = process.communicate()
        assert process.returncode == 0, out + errors
        tables[kills] = [_without_times(record) for record in table()]
    assert len(tables[0]) == 1
    assert len(tables[0][0]["epochs"]) == 2
    assert tables[1] == tables[0]
    assert "Going on after epoch 1" in (run / "log.txt").read_text()


def _without_times(record):
    for each in (record["summary"], *record["epochs"]):
        for name in ("seconds", "steps_per_second"):
            each.pop(name, None)
    return record


class TestRead:
    def test_a_workdir_that_no_sweep_made(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "metrics.jsonl").write_text('{"epoch": 1}\n{"ep')
        assert read_run(tmp_path / "mine") == {
            "name": "mine",
            "settings": {},
            "gin_config": None,
            "bindings": [],
            "jobs": None,
            "error": None,
            "summary": None,
            "epochs": [{"epoch": 1}],
        }

    @pytest.mark.parametrize(
        "content", [None, "", '{"accuracy": 1}\n', "no json\n", "[1]\n"]
    )
    def test_nothing_to_read(self, content, tmp_path):
        path = tmp_path / "x"
        if content is not None:
            path.write_text(content)
        message = "x, line 1: " if content else "Expected the workdir of a run"
        with pytest.raises(UserError, match=message):
            read_runs([path])
