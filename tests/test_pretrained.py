"""The table of converted networks is that of the committed results."""

import json
import pathlib

import keras
import numpy as np
from scripts_alone import script

pretrained = script("pretrained")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_page_has_the_table():
    results = json.loads((ROOT / "results" / "pretrained.json").read_text())
    text = (ROOT / "docs" / "convert.md").read_text()
    assert pretrained.table(results) in text
    for name, key in (("tuning", "tuning_steps"), ("", "images")):
        assert f"{results[key]:,} {name}".strip() in text, key
    networks = {row["network"] for row in results["rows"]}
    assert networks >= {"as trained", *pretrained.VARIANTS}


def test_a_round_of_measurements():
    """Stages follow one another, and a network is tested as it stands."""

    class Trainer(pretrained.Trainer):
        def __init__(self):
            self.done = []

        def accuracy(self, model):
            self.done.append("test")
            return float(len(self.done))

        def tune(self, model):
            self.done.append("tune")

        def calibrate(self, model):
            self.done.append("calibrate")

    found = Trainer().stages(keras.Sequential())
    assert found == {"converted": 1.0, "recalibrated": 3.0, "fine_tuned": 5.0}
    model = pretrained.network()
    assert model(np.zeros((1, 28, 28, 1))).shape == (1, 10)
