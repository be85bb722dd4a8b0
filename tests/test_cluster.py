"""Sweeps and searches on a Dask cluster, of processes on this machine."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from trainers import replace_training

from diffstride.errors import UserError
from diffstride.search.__main__ import main as search
from diffstride.search.costs import Counter
from diffstride.search.study import Cost
from diffstride.sweep import cluster, processes
from diffstride.sweep.__main__ import main as sweep

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="runs end with their workers on Linux"
)
ROOT = pathlib.Path(__file__).resolve().parent.parent
# For processes that are started elsewhere.
PYTHONPATH = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
)

# Takes the place of diffstride.main: {behaviour} comes before each epoch.
TRAINER = """
import json, os, pathlib, re, signal, sys, time
flags = dict(re.findall(r"--(workdir|seed)=(.*)", "\\n".join(sys.argv)))
workdir = pathlib.Path(flags["workdir"])
name, folder = workdir.name, workdir.parent

def note(what):
    with (folder / "noted").open("a") as file:
        print(what, name, os.getpid(), os.getppid(), file=file)

def wait_for(file):
    for _ in range(12000):  # Tests that fail shall end, too.
        if (folder / file).exists():
            return
        time.sleep(0.01)
    sys.exit("waited in vain")

note("starts")
last = 0.9 - len(name) / 1000 - int(flags["seed"]) / 10
last -= sum(map(int, re.findall(r"\\d", name))) / 1000
metrics = workdir / "metrics.jsonl"
rows = metrics.read_text() if metrics.exists() else ""
for epoch in range(rows.count("\\n") + 1, 4):
{behaviour}
    rows += json.dumps(
        {{"epoch": epoch, "val_accuracy": last * epoch / 3}}) + "\\n"
    metrics.with_name("beside").write_text(rows)
    metrics.with_name("beside").rename(metrics)
(workdir / "summary.json").write_text(json.dumps(
    {{"test_accuracy": 1 - last, "validation_accuracy": last, "seconds": 1.0}}))
note("ends")
"""
NAMES = [f"{m}_seed-{s}" for s in (0, 1) for m in ("strided", "outer")]


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """`trainer(behaviour)` sets what runs do from then on, in `tmp_path`."""
    return replace_training(TRAINER, "    ", tmp_path, monkeypatch)


class Dask:
    """A scheduler and workers, in processes of their own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.port = port
        self.workers = []
        self.scheduler = self._start(
            "scheduler", "--host=127.0.0.1", f"--port={port}"
        )

    def add_worker(self, **variables):
        self.workers.append(
            self._start(
                *("worker", self.address, "--nthreads=1", "--no-nanny"),
                variables=variables,
            )
        )

    def _start(self, *arguments, variables=None):
        with (self.folder / "dask.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": PYTHONPATH,
                    **(variables or {}),
                },
            )

    def is_up(self):
        with socket.socket() as tried:
            return not tried.connect_ex(("127.0.0.1", self.port))

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    pytest.importorskip("distributed")
    dask = Dask(tmp_path_factory.mktemp("dask"))
    yield dask
    dask.close()


@pytest.fixture
def dask(shared):
    """Two workers, whatever became of those of other tests."""
    shared.workers = [w for w in shared.workers if w.poll() is None]
    while len(shared.workers) < 2:
        shared.add_worker()
    wait_until(shared.is_up)
    with cluster.connected(shared.address, lambda: None) as client:
        client.wait_for_workers(2, timeout=60)
    return shared


def arguments(*more, folder="runs"):
    return [
        "sweep",
        *("--gin_config=digits.gin", "--grid=method=strided|outer"),
        *("--grid=seed=0|1", f"--workdir={folder}"),
        *(f"--output={folder}.jsonl", *more),
    ]


def table(folder="runs"):
    lines = pathlib.Path(f"{folder}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def noted(what, folder="runs"):
    path = pathlib.Path(folder, "noted")
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1:] for line in lines if line.split()[0] == what]


def wait_until(condition):
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@contextlib.contextmanager
def meanwhile(function):
    """Calls a function in a thread; tells what it raises."""
    raised = []

    def call():
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    yield
    thread.join()
    assert raised == []


class TestSweep:
    def test_the_table_is_that_of_a_sweep_here(self, trainer, dask, capsys):
        assert sweep(arguments(folder="here")) == 0
        assert sweep(arguments(f"--scheduler={dask.address}")) == 0
        assert table() == table("here")
        assert [record["name"] for record in table()] == NAMES
        workers = {worker for *_, worker in noted("starts")}
        assert workers == {str(worker.pid) for worker in dask.workers}
        assert "[4/4]" in capsys.readouterr().out
        # What is finished is not made again, here or there.
        assert sweep(arguments(f"--scheduler={dask.address}")) == 0
        assert sweep(arguments()) == 0
        assert len(noted("starts")) == 4

    def test_a_run_of_a_killed_worker_goes_on_elsewhere(self, trainer, dask):
        trainer(
            """
            if name == "outer_seed-0" and epoch == 2:
                wait_for("go")
            """
        )

        def kill():
            wait_until(lambda: len(noted("ends")) == 3)
            metrics = pathlib.Path("runs/outer_seed-0/metrics.jsonl")
            wait_until(metrics.exists)
            ((pid, worker),) = [
                rest for name, *rest in noted("starts") if name == NAMES[1]
            ]
            os.kill(int(worker), signal.SIGKILL)
            wait_until(lambda: not is_alive(pid))
            pathlib.Path("runs/go").touch()

        with meanwhile(kill):
            assert sweep(arguments(f"--scheduler={dask.address}")) == 0
        assert [record["error"] for record in table()] == [None] * 4
        first, second = [w for n, _, w in noted("starts") if n == NAMES[1]]
        assert first != second
        # It went on after its first epoch.
        epochs = [row["epoch"] for row in table()[1]["epochs"]]
        assert epochs == [1, 2, 3]

    def test_failures_are_told_as_here(self, trainer, dask, capsys):
        trainer(
            """
            if name == "strided_strides-1-2_seed-0":
                sys.exit("more\\nerror: Loss is nan at step 2.\\nmore")
            if name == "outer_strides-1-2_seed-0":
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "strided_strides-1-2_seed-1":
                sys.exit(0)
            print("`resnet.Resnet.strides` is set in --gin_bindings, line 1, "
                  "but nothing in this run uses it", flush=True)
            wait_for("never")
            """
        )
        more = ["--grid=strides=1,2", f"--scheduler={dask.address}"]
        assert sweep(arguments(*more)) == 1
        first, second, third, last = [record["error"] for record in table()]
        assert first == "Loss is nan at step 2."
        assert second == "Killed by SIGKILL"
        assert third == "It left no summary.json"
        assert last.startswith("strides has no effect with this config")
        assert "4 runs failed" in capsys.readouterr().out
        (pid,) = [p for n, p, _ in noted("starts") if n == table()[3]["name"]]
        wait_until(lambda: not is_alive(pid))
        trainer()
        assert sweep(arguments(*more)) == 0
        assert [record["error"] for record in table()] == [None] * 4

    def test_a_run_that_is_started_twice_runs_once(
        self, trainer, dask, tmp_path
    ):
        trainer("time.sleep(0.2)")
        folder = pathlib.Path("runs").absolute()
        (folder / "a").mkdir(parents=True)
        command = [sys.executable, "-S", str(tmp_path / "trainer.py")]
        command += [f"--workdir={folder / 'a'}", "--seed=0"]
        with (
            processes.locked(folder),
            cluster.connected(dask.address, lambda: None) as client,
        ):
            there = cluster.Cluster(client, folder, None)
            log = folder / "a" / "log.txt"
            tasks = [there.start(command, log) for _ in range(2)]
            wait_until(lambda: all(task.has_ended() for task in tasks))
            assert [task.error() for task in tasks] == [None, None]
        lines = (folder / "noted").read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["starts", "ends"] * 2
        assert len({line.split()[3] for line in lines}) == 2

    def test_a_lost_scheduler_loses_nothing(
        self, trainer, tmp_path, monkeypatch
    ):
        pytest.importorskip("distributed")
        trainer("if epoch == 2: wait_for('go')")
        (tmp_path / "dask").mkdir()
        for attempt in range(2):
            dask = Dask(tmp_path / "dask")
            try:
                wait_until(dask.is_up)
                more = arguments(f"--scheduler={dask.address}")
                if attempt:
                    with (
                        monkeypatch.context() as patch,
                        pytest.raises(UserError, match="had no workers for 0"),
                    ):
                        patch.setattr(cluster, "_WORKERS_SECONDS", 0)
                        sweep(more)
                dask.add_worker()
                if attempt:
                    assert sweep(more) == 0
                    break

                def kill(dask=dask):
                    wait_until(lambda: noted("starts"))
                    dask.scheduler.kill()

                with meanwhile(kill), pytest.raises(UserError) as error:
                    sweep(more)
                assert "scheduler is lost" in str(error.value)
                ((_, pid, _),) = noted("starts")
                # The worker ends, and its run before.
                wait_until(lambda pid=pid: not is_alive(pid))
                assert table() == []
                pathlib.Path("runs/go").touch()
            finally:
                dask.close()
        assert [record["name"] for record in table()] == NAMES
        assert len(noted("starts")) == 5

    def test_runs_end_when_the_sweep_is_stopped(self, trainer, dask, capsys):
        trainer(
            f"""
            if name == "outer_seed-0":
                os.kill({os.getpid()}, signal.SIGINT)
            wait_for("never")
            """
        )
        more = arguments(f"--scheduler={dask.address}")
        assert sweep(more) == 128 + signal.SIGINT
        stopped = "Stopped. The same command goes on from here.\n"
        assert capsys.readouterr().err == stopped
        for _, pid, _ in noted("starts"):
            wait_until(lambda pid=pid: not is_alive(pid))
        trainer()
        assert sweep(more) == 0
        assert [record["error"] for record in table()] == [None] * 4

    def test_runs_end_when_the_sweep_is_killed(self, trainer, dask, tmp_path):
        trainer("if epoch == 2: wait_for('go')")
        script = tmp_path / "sweep.py"
        script.write_text(
            "import sys\n"
            "from diffstride.sweep import runner\n"
            "from diffstride.sweep.__main__ import main\n"
            "real = runner.Sweep.command\n"
            "runner.Sweep.command = lambda *a: "
            "[sys.executable, '-S', 'trainer.py', *real(*a)[3:]]\n"
            "main(sys.argv)\n"
        )
        more = arguments(f"--scheduler={dask.address}")
        process = subprocess.Popen([sys.executable, str(script), *more[1:]])
        wait_until(lambda: len(noted("starts")) == 2)
        process.kill()
        process.wait()
        for _, pid, _ in noted("starts"):
            wait_until(lambda pid=pid: not is_alive(pid))
        pathlib.Path("runs/go").touch()
        assert sweep(more) == 0
        assert [record["name"] for record in table()] == NAMES


class TestRefusals:
    def test_a_workdir_that_a_worker_still_has(self, trainer, monkeypatch):
        monkeypatch.setattr(processes, "_LOCK_SECONDS", 0)
        with (
            processes.locked(pathlib.Path("runs", NAMES[0])),
            pytest.raises(UserError, match=f"at work in runs/{NAMES[0]}; wait"),
        ):
            sweep(arguments())
        assert sweep(arguments()) == 0

    def test_a_scheduler_that_is_not_there(self, trainer, monkeypatch):
        pytest.importorskip("distributed")
        monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.3)
        for address in ("tcp://127.0.0.1:9", "tcp://", "what://x:1"):
            with pytest.raises(UserError, match="scheduler that can be reache"):
                sweep(arguments(f"--scheduler={address}"))

    def test_no_distributed(self, trainer, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(UserError, match="needs distributed; pip install"):
            sweep(arguments("--scheduler=tcp://127.0.0.1:9"))

    def test_a_worker_without_this_package(self, trainer, dask, tmp_path):
        empty = tmp_path / "other" / "diffstride"
        empty.mkdir(parents=True)
        (empty / "__init__.py").touch()
        # An editable installation would find it all the same.
        (empty / "sweep.py").write_text("raise ImportError")
        dask.add_worker(PYTHONPATH=f"{empty.parent}{os.pathsep}{PYTHONPATH}")
        try:
            with cluster.connected(dask.address, lambda: None) as client:
                client.wait_for_workers(3, timeout=60)
            with pytest.raises(UserError, match="does not know diffstride.swe"):
                sweep(arguments(f"--scheduler={dask.address}"))
        finally:
            worker = dask.workers.pop()
            worker.kill()
            worker.wait()

    def test_another_version(self, trainer, dask, monkeypatch):
        monkeypatch.setattr(cluster, "_versions", lambda: "diffstride 7")
        message = "at tcp://.* has diffstride .* install what is here, diffst"
        with pytest.raises(UserError, match=message):
            sweep(arguments(f"--scheduler={dask.address}"))

    def test_a_folder_that_is_not_shared(self, trainer, dask):
        # Nobody has locked it, as if a worker saw another one.
        for folder in (pathlib.Path("none"), pathlib.Path("runs")):
            with (
                cluster.connected(dask.address, lambda: None) as client,
                pytest.raises(UserError, match="that .* is locked here; choos"),
            ):
                cluster.Cluster(client, folder, None)
            pathlib.Path("runs").mkdir(exist_ok=True)
            pathlib.Path("runs/sweep.lock").touch()

    def test_a_worker_that_comes_late_is_asked_too(self, trainer, dask):
        folder = pathlib.Path("runs")
        with (
            processes.locked(folder),
            cluster.connected(dask.address, lambda: None) as client,
        ):
            there = cluster.Cluster(client, folder, None)
            there._here = (str(folder.absolute()), "diffstride 7")
            task = there.start(["false"], folder / "log.txt")
            wait_until(task.has_ended)
            with pytest.raises(UserError, match="install what is here, diffs"):
                task.error()


def test_a_search_there_is_one_here(trainer, dask, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(Counter, "cost", lambda *_: Cost(100, 3, 10))
    # So that an epoch can be seen before the next one.
    trainer("time.sleep(0.05 if epoch < 3 else 0)")
    for folder, more in (
        ("here", []),
        ("there", [f"--scheduler={dask.address}", "--jobs=1"]),
    ):
        flags = ["--space=strides=1-3,1-3", "--space=seed=0", "--trials=8"]
        flags += [f"--workdir={folder}", f"--output={folder}.jsonl"]
        flags += ["--gin_config=digits.gin", "--pruner=median"]
        assert search(["search", *flags, *more]) == 0
    journals = [
        pathlib.Path(folder, "search.jsonl").read_text()
        for folder in ("here", "there")
    ]
    assert journals[0] == journals[1]
    assert "pruned" in journals[0] and "finished" in journals[0]


def run_sweep(*flags):
    """The tool, as a person starts it; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "diffstride.sweep", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_twelve_runs_on_two_workers_of_which_one_is_killed(
    data_dir, dask, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    common = [
        f"--data_dir={data_dir}",
        "--gin_config=digits.gin",
        "--grid=method=strided|spectral|outer",
        "--grid=strides=1,2|2,1",
        "--grid=seed=0|1",
        "--gin_bindings=train.num_epochs = 12",
        "--gin_bindings=resnet.Resnet.filters = [4, 4]",
        "--gin_bindings=data.load_datasets.image_size = 8",
        "--gin_bindings=data.load_datasets.train_split = 'train[:512]'",
        "--gin_bindings=data.load_datasets.test_split = 'test[:128]'",
    ]
    killed = []

    def kill():
        # In the midst of a run that has saved an epoch.
        worker = dask.workers[0]
        for _ in range(6000):
            if killed:
                break
            time.sleep(0.05)
            for line in os.popen(f"ps -ww --ppid {worker.pid} -o args="):
                found = re.search(r"--workdir=(\S+)", line)
                if not found:  # A run that has ended a moment ago.
                    continue
                workdir = pathlib.Path(found[1])
                saved = workdir / "backup" / "latest.weights.h5"
                if saved.exists() and not (workdir / "summary.json").exists():
                    worker.kill()
                    killed.append(workdir)

    with meanwhile(kill):
        print(
            run_sweep(
                *(*common, "--workdir=there", "--output=there.jsonl"),
                f"--scheduler={dask.address}",
            )
        )
    assert [w.poll() for w in dask.workers] == [-signal.SIGKILL, None]
    assert "Going on after epoch" in (killed[0] / "log.txt").read_text()
    print(run_sweep(*common, "--workdir=here", "--output=here.jsonl"))
    tables = [table("here"), table("there")]
    for record in tables[0] + tables[1]:
        for each in (record["summary"], *record["epochs"]):
            for name in ("seconds", "steps_per_second"):
                each.pop(name, None)
    assert len(tables[0]) == 12
    assert tables[0] == tables[1]
