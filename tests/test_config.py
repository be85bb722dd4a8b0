import os

import gin
import pytest

import diffstride
from diffstride import config, pooling, resnet, settings
from diffstride.errors import ConfigError


@pytest.fixture(autouse=True)
def clean():
    yield
    gin.clear_config()


def built(*bindings):
    config.load([], bindings)
    return gin.get_configurable("resnet.resnet18")()


def test_bindings_of_the_release_work_verbatim():
    model = built(
        "data.load_datasets.name = 'cifar100'",
        "data.load_datasets.mixup_alpha = 0.0",
        "resnet.Resnet.pooling_cls = @pooling.FixedSpectralPooling",
        "resnet.resnet18.strides = [1, 1, 3, 2, 3]",
        "pooling.DiffStride.smoothness_factor = 4.0",
        "train.workdir = 'exp/diffstride/resnet18'",
    )
    assert model.strides == [1, 1, 3, 2, 3]
    assert type(model.stem_pooling) is pooling.FixedSpectralPooling
    assert gin.query_parameter("train.workdir") == "exp/diffstride/resnet18"
    assert gin.query_parameter("data.load_datasets.name") == "cifar100"
    assert gin.query_parameter("data.load_datasets.mixup_alpha") == 0.0


def test_strides_as_text_and_no_pooling():
    model = built(
        "resnet.resnet18.strides = '1, 1, 3, 2, 3'",
        "resnet.Resnet.pooling_cls = None",
    )
    assert model.strides == [1, 1, 3, 2, 3]
    assert model.stem_pooling is None


def test_rivals_have_names_and_parameters():
    for method, layer in settings.RIVALS.items():
        (line,) = settings.METHODS[method]
        model = built(line)
        assert type(model.stem_pooling) is getattr(diffstride, layer)
    model = built(line, "pooling.DCTDiffStride.smoothness_factor = 2.5")
    assert model.stem_pooling.smoothness_factor == 2.5


def test_bindings_of_layers_reach_and_outlast_gin():
    model = built(
        "resnet.Resnet.pooling_cls = @pooling.DiffStride",
        "pooling.DiffStride.smoothness_factor = 2.5",
        "resnet.Resnet.weight_decay = 0.25",
    )
    layer = model.blocks[2].layers[0].pooling
    assert type(layer) is pooling.DiffStride
    assert layer.smoothness_factor == 2.5
    assert model.weight_decay == 0.25
    saved = model.get_config()
    gin.clear_config()
    loaded = resnet.Resnet.from_config(saved)
    assert loaded.stem_pooling.smoothness_factor == 2.5


def test_every_shipped_config_parses():
    names = sorted(path.name for path in config.configs_dir().glob("*.gin"))
    assert names == [
        "audio.gin",
        "audio_folder.gin",
        "audio_quickstart.gin",
        "base.gin",
        "cifar10.gin",
        "cifar100.gin",
        "cifar10_augmented.gin",
        "cifar10_densenet.gin",
        "cifar10_efficientnet.gin",
        "digits.gin",
        "digits_budget.gin",
        "drums.gin",
        "fashion_mnist.gin",
        "imagenet_resnet18.gin",
        "letters.gin",
        "notes_images.gin",
        "notes_instrument.gin",
        "notes_multitask.gin",
        "notes_pitch.gin",
        "nsynth.gin",
        "sounds_multitask.gin",
        "speech_commands.gin",
    ]
    for name in names:
        config.load([name], [])


def test_configs_are_headed_by_their_command():
    for path in config.configs_dir().glob("*.gin"):
        if path.name in ("audio.gin", "base.gin"):  # Included by others.
            continue
        text = path.read_text()
        assert f"python -m diffstride.main --gin_config={path.name}" in text
        for word in ("eproduces", "ccuracy", "untime"):
            assert word in text, (path.name, word)


def file_with(tmp_path, *lines):
    path = tmp_path / "mine.gin"
    path.write_text("\n".join(("include 'base.gin'", *lines)))
    return str(path)


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "resnet.Resnet.poolingcls = None",
            "`resnet.Resnet` has no parameter `poolingcls`. It has: channels",
        ),
        (
            "resnet.resnet18.stride = [1, 1, 1, 1, 1]",
            "`resnet.resnet18` has no parameter `stride`. It has:",
        ),
        (
            "pooling.DiffStride.smoothnes = 4.0",
            "`pooling.DiffStride` has no parameter `smoothnes`. It has:",
        ),
        (
            "keras.optimizers.SGD.momentun = 0.9",
            "`keras.optimizers.SGD` has no parameter `momentun`. It has:",
        ),
        (
            "data.load_datasets.nam = 'digits'",
            "'data.load_datasets' doesn't have a parameter named 'nam'",
        ),
        ("pooling.MaxPool.strides = 2", "No configurable matching"),
        (
            "resnet.Resnet.pooling_cls = @pooling.MaxPool",
            "No configurable matching reference '@pooling.MaxPool'",
        ),
        (
            "train.num_epochs = 'ten'",
            "`train.num_epochs` must be int. Received: 'ten'",
        ),
        (
            "train.num_epochs = 1.5",
            "`train.num_epochs` must be int. Received: 1.5",
        ),
        (
            "data.load_datasets.batch_size = None",
            "`data.load_datasets.batch_size` must be int. Received: None",
        ),
        (
            "resnet.Resnet.filters = 64",
            "`resnet.Resnet.filters` must be Sequence[int]. Received: 64",
        ),
        (
            "resnet.Resnet.strides = {'a': 1}",
            "`resnet.Resnet.strides` must be Sequence[int | float",
        ),
        (
            "pooling.DiffStride.cropping = 'yes'",
            "`pooling.DiffStride.cropping` must be bool. Received: 'yes'",
        ),
        (
            "keras.optimizers.SGD.momentum = 'high'",
            "`keras.optimizers.SGD.momentum` must be float. Received: 'high'",
        ),
        ("train.num_epochs = %EPOCHS", "there is no macro `EPOCHS`"),
        (
            "train.num_epochs = True",
            "`train.num_epochs` must be int. Received: True",
        ),
        (
            "resnet.Resnet.filters = [4, 'x']",
            "`resnet.Resnet.filters` must be Sequence[int]. Received: [4, 'x']",
        ),
        (
            "resnet.resnet18.filters = 'x'",
            "`resnet.resnet18.filters` must be Sequence[int]. Received: 'x'",
        ),
        (
            "pooling.DiffStride.dtype = 3",
            "`pooling.DiffStride.dtype` must be str | None. Received: 3",
        ),
        ("train.num_epochs = ", "Unable to parse value"),
        ("include 'cifar.gin'", "Config file 'cifar.gin' not found"),
        ("include 'cifar.gin'", "Did you mean cifar10.gin or "),
        ("include 'elsewhere'", "that come with DiffStride: audio.gin, "),
        ("include 'base.gin", "line"),
        # Values that Python takes for numbers, and nobody can train with.
        ("data.load_datasets.mixup_alpha = 1e400", "must be finite"),
        ("keras.optimizers.SGD.momentum = -1e999", "must be finite"),
        ("resnet.Resnet.strides = [1, 1e400]", "must be finite"),
        ("keras.optimizers.Adam.clipnorm = 1e309", "must be finite"),
        ("train.label_smoothing = nan", "nan is no value. A number is finite"),
        ("train.seed = inf", "inf is no value"),
        ("train.model_cls = resnet18", "resnet18 is no value"),
        ("train.num_epochs = 9223372036854775808", "integer of 64 bits"),
        (
            "data.load_datasets.image_size = (8, -1{})".format("0" * 30),
            "64 bits",
        ),
        # Booleans are integers in Python.
        ("resnet.Resnet.filters = [True, 4]", "must be Sequence[int]. Rec"),
        (
            "data.load_datasets.image_size = False",
            "must be int | Sequence[int]",
        ),
        ("data.load_datasets.std = [True]", "must be Sequence[float] | None."),
        ("pooling.DiffStride.cropping = 'no'", "must be bool. Received: 'no'"),
        (
            "keras.optimizers.Adam.amsgrad = 'no'",
            "must be bool. Received: 'no'",
        ),
        ("keras.optimizers.Lion.use_ema = 2", "must be bool. Received: 2"),
        # References to what does not do.
        (
            "train.optimizer_cls = @resnet.Resnet",
            "must be Callable[[], Optimizer]. Received: @resnet.Resnet",
        ),
        ("train.optimizer_cls = @keras.optimizers.SGD()", "must be Callable[["),
        (
            "train.model_cls = @pooling.DiffStride",
            "must be Callable[..., Model",
        ),
        (
            "train.load_data_fn = @resnet.resnet18",
            "must be Callable[..., Datas",
        ),
        ("train.num_epochs = @resnet.resnet18", "must be int. Received: @res"),
        (
            "resnet.Resnet.pooling_cls = @keras.optimizers.SGD",
            "must be Callabl",
        ),
        ("resnet.Resnet.pooling_cls = {}", "must be Callable[..., Layer] | N"),
        ("resnet.Resnet.pooling_cls = [{'module': 'os'}]", "must be Callable["),
        (
            "keras.optimizers.SGD.learning_rate = @keras.optimizers.Adam()",
            "must be float | LearningRateSchedule. Received: @keras.optimizers",
        ),
        (
            "keras.optimizers.SGD.learning_rate = "
            "@keras.optimizers.schedules.CosineDecay",
            "must be float | LearningRateSchedule. Received: @keras.optimizers",
        ),
        # What refers to itself.
        ("A = %A", "`A` refers to itself: %A -> %A"),
        ("A = [1, (2, {'a': %A})]", "`A` refers to itself: %A -> %A"),
        (
            "keras.optimizers.SGD.learning_rate = @keras.optimizers.SGD()",
            "refers to itself: @keras.optimizers.SGD() -> @keras.optimizers",
        ),
        ("resnet.Resnet.pooling_cls = @resnet.Resnet", "refers to itself: @"),
        ("train.load_data_fn = @x/train.train", "refers to itself: @x/train"),
        # What runs programs.
        ("import os", "Remove `import os`, or pass --allow_imports"),
        ("from os import path", "can run any program. Remove `from os import"),
        ("from os import path as p", "pass --allow_imports if you trust it"),
        ("import os.path as p", "pass --allow_imports if you trust it"),
        ("from __gin__ import dynamic_registration", "can run any program"),
        # Macros that were meant to be settings.
        ("num_epochs = 1", "nothing uses it. Did you mean train.num_epochs?"),
        ("x/label_smoothing = 0.1", "Did you mean train.label_smoothing?"),
        ("smoothness_factor = 1", "Did you mean pooling.DiffStride.smoothnes"),
        (
            "filters = [4, 4]",
            "Did you mean resnet.Resnet.filters or audio_cnn.AudioCNN",
        ),
        (
            "decay_steps = 3",
            "mean keras.optimizers.schedules.CosineDecay.decay",
        ),
        (
            "data_dir = 'data'",
            "Did you mean data.load_datasets.data_dir or data.load_audio.d",
        ),
    ],
)
def test_errors_are_one_line_that_names_file_and_parameter(
    line, message, tmp_path
):
    for in_file in (True, False):
        files = [file_with(tmp_path, line)] if in_file else []
        with pytest.raises(ConfigError) as caught:
            config.load(files, [] if in_file else [line])
        text = str(caught.value)
        assert message in text
        assert "\n" not in text
        # However deep the folders lie in which all this is tested.
        places = (tmp_path, config.configs_dir())
        assert len(text) - sum(len(str(place)) for place in places) < 600
        if "not found" not in text:
            assert ("mine.gin" if in_file else "--gin_bindings") in text
            assert "line" in text


@pytest.mark.parametrize(
    "bindings",
    [
        ["A = %B", "B = %C", "C = %A"],
        ["A = @a/macro()", "a/macro.value = %A"],
        ["A = @resnet.Resnet", "resnet.Resnet.pooling_cls = %A"],
        [
            "keras.optimizers.SGD.learning_rate = @schedules.CosineDecay()",
            "schedules.CosineDecay.decay_steps = @keras.optimizers.SGD()",
        ],
        ["A = {'a': @b/gin.singleton()}", "b/gin.singleton.constructor = %A"],
    ],
)
def test_circles_of_several_bindings(bindings):
    with pytest.raises(ConfigError, match="refers to itself: [@%].* -> "):
        config.load([], [*bindings, "train.num_epochs = 1"])


def test_files_that_include_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, included in (("a", "b"), ("b", "./c"), ("c", "a"), ("d", "a")):
        (tmp_path / f"{name}.gin").write_text(f"\ninclude '{included}.gin'\n")
    for name in "abcd":
        with pytest.raises(ConfigError, match="line 2: [abc].gin includes it"):
            config.load([f"{name}.gin"], [])
    # The same file on two ways is no circle.
    (tmp_path / "e.gin").write_text("include 'base.gin'\n")
    (tmp_path / "f.gin").write_text("include 'base.gin'\ninclude 'e.gin'")
    config.load(["f.gin"], [])


def test_a_home_folder_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.gin").write_text("include '~/b.gin'\n")
    (tmp_path / "b.gin").write_text("train.num_epochs = 7\n")
    config.load(["~/a.gin"], [])
    assert gin.query_parameter("train.num_epochs") == 7


def test_imports_when_they_are_allowed():
    dynamic = [
        "from __gin__ import dynamic_registration",
        "import os",
        "from diffstride import train",
        "train.train.workdir = @os.getcwd()",
    ]
    config.load([], ["import os"], True)
    config.load([], dynamic, allow_imports=True)
    assert config.workdir() == os.getcwd()
    with pytest.raises(ConfigError, match="No module named 'nowhere'"):
        config.load([], ["import nowhere"], allow_imports=True)


@pytest.mark.parametrize(
    "file",
    ["a\0b", "a" * 5000, "~nobody-here/x.gin", "", ".", "configs", "\n", "//"],
)
def test_paths_that_are_no_files(file):
    for files, bindings in (([file], []), ([], [f"include {file!r}"])):
        with pytest.raises(ConfigError, match="Config file '.* not fou|'aaa"):
            config.load(files, bindings)


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "a.gin"
    for content in (b"\xff\xfe", b"a = '\xe9'\n", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="a.gin"):
            config.load([str(path)], [])


def test_each_load_starts_afresh():
    config.load([], ["train.num_epochs = 3"], defaults={"train.workdir": "a"})
    assert config.workdir() == "a"
    config.load([], ["train.seed = 3"], defaults={"train.workdir": "b"})
    assert config.workdir() == "b"
    with pytest.raises(ValueError, match="num_epochs"):
        gin.query_parameter("train.num_epochs")
    config.load([], ["train.workdir = 'c'"], defaults={"train.workdir": "b"})
    assert config.workdir() == "c"
    with pytest.raises(ConfigError):
        config.load([], ["train.nope = 3"])
    config.load([], [])


def test_wrong_type_through_a_macro():
    with pytest.raises(ConfigError, match="`train.num_epochs` must be int"):
        config.load([], ["EPOCHS = 'ten'", "train.num_epochs = %EPOCHS"])


def test_right_types_are_accepted():
    config.load(
        [],
        [
            "EPOCHS = 3",
            "train.num_epochs = %EPOCHS",
            "resnet.Resnet.filters = [%EPOCHS, 16, %EPOCHS]",
            "pooling.DiffStride.smoothness_factor = 4",
            "pooling.DiffStride.upper_limit_stride = None",
            "resnet.Resnet.strides = [1, (2, 3), 2.5]",
            "resnet.Resnet.id_only = [True, False]",
            "data.load_datasets.image_size = (32, 32)",
            "keras.optimizers.AdamW.weight_decay = 0.1",
            "keras.optimizers.SGD.learning_rate = 1",
        ],
    )


def test_unknown_file_names_those_there_are():
    with pytest.raises(ConfigError, match="'nope' not found.*cifar10.gin"):
        config.load(["nope"], [])


def test_bindings_that_nothing_uses_are_told():
    bindings = [
        "resnet.resnet18.strides = '1, 1, 3, 2, 3'",
        "resnet.Resnet.weight_decay = 0.1",
        "pooling.DiffStride.smoothness_factor = 1.0",
        "foo/resnet.Resnet.weight_decay = 0.2",
        "EPOCHS = 3",
        "train.num_epochs = %EPOCHS",
        "USED = 2",
        "resnet.Resnet.num_layers = %USED",
        "a/NOT_USED = 2",
        "bar/resnet.Resnet.id_only = True",
    ]
    config.load([], bindings)
    with gin.config_scope("bar/inner"):
        gin.get_configurable("resnet.Resnet")([4, 8], [1, 1])
    unused = config.unused(bindings, config.operative())
    assert [text.partition(" ")[0] for text in unused] == [
        "`resnet.resnet18.strides`",
        "`pooling.DiffStride.smoothness_factor`",
        "`foo/resnet.Resnet.weight_decay`",
        "`EPOCHS`",
        "`train.num_epochs`",
        "`a/NOT_USED`",
    ]


def test_an_open_bracket_is_told(tmp_path):
    with pytest.raises(ConfigError, match="Unfinished statement.*gin_bindings"):
        config.load([], ["train.num_epochs = [1,"])


def test_located_tells_where_a_refused_value_was_set(tmp_path):
    path = file_with(
        tmp_path,
        "pooling.DiffStride.norm = 'unit'",
        "pooling.FixedSpectralPooling.norm = 'forward'",
    )
    message = "`norm` must be ... In call to configurable 'DiffStride' (<...>)"
    assert config.located(message, [path], []) == (
        f"`norm` must be ... `pooling.DiffStride.norm` is set in {path}, line 2"
    )
    for other in ("`norm` must be ...", message.replace("norm", "other")):
        expected = other.partition(" In call")[0]
        assert config.located(other, [path], []) == expected


@pytest.mark.parametrize(
    "added, accepted",
    [
        ("train.budget = None", True),
        ("train.train.budget = None", True),
        ("Resnet.pooling_placement = 'after'", True),
        ("DiffStride.final_smoothness_factor = \\\n    None", True),
        ("train.smoothness_share = 0.7", True),
        ("train.smoothness_share = 0.5", False),
        ("Resnet.pooling_placement = 'before'", False),
        ("DiffStride.final_smoothness_factor = 0.0", False),
        ("train.seed = 0", True),
        ("A = None", False),
    ],
)
def test_a_workdir_of_an_older_version_goes_on(added, accepted):
    """Settings that have come since have their defaults there."""
    old = "# Parameters for train:\ntrain.label_smoothing = 0.1\n"
    differing = config.differing(old, f"{old}{added}\n")
    assert (not differing) == accepted
    # What has gone is another matter.
    assert config.differing(f"{old}{added}\n", old)


def test_data_of_a_task_may_move():
    for name, free in (("data_dir", True), ("label", False)):
        texts = [f"pitch/load_audio.{name} = {value!r}\n" for value in "ab"]
        assert (not config.differing(*texts)) == free
