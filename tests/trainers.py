"""Scripts that take the place of training in the runs of sweeps."""

import sys
import textwrap

from diffstride.sweep import runner


def replace_training(template, indent, tmp_path, monkeypatch):
    """Has runs, in `tmp_path`, call a script as they would `diffstride.main`.

    Returns a function that sets what it does from then on: the `{behaviour}` of
    the template, indented.
    """
    script = tmp_path / "trainer.py"
    real = runner.Sweep.command

    def fake(sweep, run):
        head, tail = real(sweep, run)[:3], real(sweep, run)[3:]
        assert head == [sys.executable, "-m", "diffstride.main"]
        return [sys.executable, "-S", str(script), *tail]

    def set_behaviour(behaviour="pass"):
        behaviour = textwrap.indent(textwrap.dedent(behaviour), indent)
        script.write_text(template.format(behaviour=behaviour))

    monkeypatch.setattr(runner.Sweep, "command", fake)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    set_behaviour()
    return set_behaviour
