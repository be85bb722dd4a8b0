import gin
import pytest

from diffstride import config, pooling, resnet
from diffstride.errors import ConfigError


@pytest.fixture(autouse=True)
def clean():
    gin.clear_config()
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
        "base.gin",
        "cifar10.gin",
        "cifar100.gin",
        "cifar10_augmented.gin",
        "digits.gin",
        "fashion_mnist.gin",
    ]
    for name in names:
        gin.clear_config()
        config.load([name], [])


def test_configs_are_headed_by_their_command():
    for path in config.configs_dir().glob("*.gin"):
        if path.name == "base.gin":
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
        ("include 'nowhere.gin'", "Unable to open file: nowhere.gin"),
    ],
)
def test_errors_are_one_line_that_names_file_and_parameter(
    line, message, tmp_path
):
    for in_file in (True, False):
        gin.clear_config()
        files = [file_with(tmp_path, line)] if in_file else []
        with pytest.raises(ConfigError) as caught:
            config.load(files, [] if in_file else [line])
        text = str(caught.value)
        assert message in text
        assert "\n" not in text and len(text) < 600
        if "include" not in line:
            assert ("mine.gin" if in_file else "--gin_bindings") in text
            assert "line" in text


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
    with pytest.raises(ConfigError, match="'nope.gin' not found.*cifar10.gin"):
        config.load(["nope.gin"], [])


def test_bindings_that_nothing_uses_are_told():
    bindings = [
        "resnet.resnet18.strides = '1, 1, 3, 2, 3'",
        "resnet.Resnet.weight_decay = 0.1",
        "pooling.DiffStride.smoothness_factor = 1.0",
    ]
    config.load([], bindings)
    gin.get_configurable("resnet.Resnet")([4, 8], [1, 2])
    unused = config.unused(bindings, config.operative())
    assert [text.partition(" ")[0] for text in unused] == [
        "`resnet.resnet18.strides`",
        "`pooling.DiffStride.smoothness_factor`",
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
