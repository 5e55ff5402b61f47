"""hypothesis strategies: dtypes that the .npy format supports, arrays of them, and memory layouts."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

BYTE_ORDERS = st.sampled_from("<>=")
TIME_UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"]

numbers = st.sampled_from([*"?bBhHiIlLqQefdgFDG"]).flatmap(
    lambda char: BYTE_ORDERS.map(lambda order: np.dtype(char).newbyteorder(order))
)
times = st.builds(
    lambda kind, count, unit, order: np.dtype(f"{order}{kind}8[{count}{unit}]"),
    st.sampled_from("mM"),
    st.integers(1, 99),
    st.sampled_from(TIME_UNITS),
    BYTE_ORDERS,
)
generic_times = st.sampled_from([np.dtype("m8"), np.dtype("M8"), np.dtype(">M8")])
strings = st.builds(
    lambda kind, length, order: np.dtype(f"{order}{kind}{length}"),
    st.sampled_from("SU"),
    st.integers(1, 20),
    BYTE_ORDERS,
)
voids = st.integers(1, 40).map(lambda size: np.dtype(f"V{size}"))
scalars = st.one_of(numbers, times, generic_times, strings, voids)

_letters = st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")
field_names = st.one_of(
    st.sampled_from(["a", "b", "x y", "it's", 'say "so"', "back\\slash", "naïve", "日本", "new\nline", "O", "shape"]),
    st.text(_letters, min_size=1, max_size=6),
)


def _structures(inner):
    return st.builds(
        _structure,
        st.lists(field_names, min_size=1, max_size=5, unique=True),
        st.lists(st.tuples(inner, st.sampled_from([(), (2,), (1, 3), (2, 1, 2)])), min_size=5, max_size=5),
        st.booleans(),
        st.integers(0, 9),
        st.booleans(),
    )


def _structure(names, parts, align, gap, titled):
    formats = [np.dtype((kind, shape)) if shape else kind for kind, shape in parts[: len(names)]]
    fields = [((f"title of {name}", name) if titled else name, kind) for name, kind in zip(names, formats, strict=True)]
    plain = np.dtype(fields, align=align)
    if align or not gap or titled:
        return plain
    offsets = [plain.fields[name][1] + gap * (index + 1) for index, name in enumerate(names)]
    return np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": plain.itemsize + gap * (len(names) + 1)}
    )


structures = st.recursive(_structures(scalars), lambda inner: _structures(st.one_of(scalars, inner)), max_leaves=6)
dtypes = st.one_of(scalars, structures)

shapes = st.one_of(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5), st.just((1,) * 64))


@st.composite
def layouts(draw):
    """Generate an array of numbers with any memory layout that views can produce."""
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=5))
    array = np.arange(np.prod(shape, dtype=int) or 1, dtype=draw(st.sampled_from(["i4", "<f8", ">i2", "c16"])))
    array = array[: np.prod(shape, dtype=int)].reshape(shape)
    for _ in range(draw(st.integers(0, 4))):
        array = draw(st.sampled_from(_TURNS))(array, draw)
    return array


def _permuted(array, draw):
    return array.transpose(draw(st.permutations(range(array.ndim))))


def _sliced(array, draw):
    steps = st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2), slice(1, None), slice(0, 0)])
    return array[tuple(draw(steps) for _ in range(array.ndim))]


def _broadcast(array, draw):
    return np.broadcast_to(array, (draw(st.integers(1, 3)), *array.shape))


def _newaxis(array, draw):
    return np.expand_dims(array, draw(st.integers(0, array.ndim)))


def _fortran(array, draw):
    return np.asfortranarray(array)


_TURNS = [_permuted, _sliced, _broadcast, _newaxis, _fortran]

# Valid and invalid names.
good_names = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0:"), min_size=1, max_size=20)


def same_dtype(a, b):
    """Compare dtypes including byte order, titles and the align flag, at every depth.

    long and long long are equal: only their names differ, and no reader of the format distinguishes them.
    """
    if a != b or a.str != b.str or a.isalignedstruct != b.isalignedstruct or (a.type is b.type) < (a.kind == "V"):
        return False
    if a.subdtype is not None:
        return a.shape == b.shape and same_dtype(a.base, b.base)
    if a.names is None:
        return b.names is None
    return all(
        same_dtype(a.fields[name][0], b.fields[name][0]) and a.fields[name][1:] == b.fields[name][1:]
        for name in a.names
    )
