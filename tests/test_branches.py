"""What meets again in a graph, by sizes and calls alone."""

from diffstride.branches import Branches, Shift, Step, Strides, Tensor

POOL = ("pool", (2, 2), (0, 0))


def tensor(key, size):
    return Tensor(key, (size, size) if size else ())


def step(inputs, outputs, label="op", name="op"):
    return Step(name, inputs, outputs, label)


def pool(x, y, layer, place=0, replaced=POOL):
    label = Strides([(x.size[0] // y.size[0], -1)] * 2)
    return Step(f"pool_{layer}", [x], [y], label, layer, replaced, place)


X, Y, Z, W, V = (tensor(k, n) for k, n in enumerate((8, 4, 4, 2, 4)))


def test_branches_that_are_added_share():
    add = step([Y, Z], [V], name="add")
    branches = Branches([X], [pool(X, Y, 1), pool(X, Z, 2), add])
    assert branches.groups[1] == branches.groups[2] and not branches.kept
    assert branches.fixed(X.key) and not branches.fixed(V.key)
    apart = Branches([X], [pool(X, Y, 1), pool(X, Z, 2)])
    assert apart.groups[1] != apart.groups[2]


def test_a_branch_that_does_not_follow_holds_the_others():
    add = step([Y, Z], [V], name="add")
    strided = step([X], [Z], Strides([(2, -1)] * 2))
    branches = Branches([X], [pool(X, Y, 1), strided, add])
    assert branches.kept == {1: "add"} and not branches.groups
    assert branches.fixed(V.key)
    # Before them something may be replaced, as long as both do the same.
    wide = tensor(10, 16)
    for label, kept in ((Strides([(2, -1)] * 2), {1}), ("strided", {1, 2})):
        strided = step([X], [Z], label)
        steps = [pool(wide, X, 2), pool(X, Y, 1), strided, add]
        assert set(Branches([wide], steps).kept) == kept


def test_two_steps_on_one_branch_and_one_on_the_other():
    other, half = tensor(10, 2), tensor(11, 4)
    steps = [
        pool(X, half, 1),
        pool(half, W, 2),
        pool(X, other, 3, replaced=("pool", (4, 4), (0, 0))),
        step([W, other], [tensor(12, 2)], name="add"),
        pool(half, tensor(13, 2), 4),
    ]
    branches = Branches([X], steps)
    assert branches.kept == {1: "add", 2: "add", 3: "add"}
    assert set(branches.groups) == {4}


def test_what_comes_back_to_an_earlier_size_holds_what_is_between():
    """A U-Net: of an odd size, halved and doubled, another one comes."""
    down, up = tensor(10, 2), tensor(11, 4)
    steps = [
        pool(X, Y, 1),
        pool(Y, down, 2),
        step([down], [up], "up"),
        step([Y, up], [tensor(12, 4)], name="concatenate"),
    ]
    branches = Branches([X], steps)
    assert branches.kept == {1: "concatenate", 2: "concatenate"}


def test_padding_and_a_valid_window_cancel():
    wide = tensor(10, 6)
    steps = [
        pool(X, Y, 1),
        step([Y], [wide], Shift((2, 2))),
        step([wide], [Z], Shift((-2, -2))),
        step([Y, Z], [V], name="add"),
    ]
    assert set(Branches([X], steps).groups) == {1}
    # Cropped to a size of its own, it does not follow.
    steps[2] = step([wide], [Z], "crop")
    assert Branches([X], steps).kept == {1: "add"}


def test_strides_that_stay_are_alike_with_their_padding():
    """A padded 3x3 window and one of 1x1; one of 2x2 has less at odd sizes."""
    wide = tensor(10, 6)
    one = tensor(11, 2)
    two = tensor(12, 2)
    steps = [
        pool(X, Y, 1),
        step([Y], [wide], Shift((2, 2))),
        step([wide], [one], Strides([(2, -3)] * 2)),
        step([Y], [two], Strides([(2, -1)] * 2)),
        step([one, two], [W], name="add"),
    ]
    assert set(Branches([X], steps).groups) == {1}
    steps[3] = step([Y], [two], Strides([(2, -2)] * 2))
    assert Branches([X], steps).kept == {1: "add"}


def test_weights_of_channels_are_broadcast():
    vector, weights = tensor(10, 0), tensor(11, 1)
    one = tensor(12, 1)
    steps = [
        pool(X, one, 1),
        step([one], [vector]),
        step([vector], [weights]),
        step([one, weights], [tensor(13, 1)], name="multiply"),
    ]
    assert set(Branches([X], steps).groups) == {1}


def test_models_inside_have_layers_of_their_own():
    add = step([Y, Z], [V], name="add")
    steps = [pool(X, Y, 1, place=1), pool(X, Z, 2, place=2), add]
    branches = Branches([X], steps)
    assert set(branches.kept) == {1, 2} and not branches.groups


def test_a_layer_that_is_called_twice_is_one():
    other = tensor(10, 8)
    steps = [pool(X, Y, 1), pool(other, Z, 1), step([Y, Z], [V])]
    branches = Branches([X, other], steps)
    assert set(branches.groups) == {1}
