"""The calibrate stage on small graphs of every awkward kind: right values or a clear refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import onnx_file
from edgekit.calibration import store
from edgekit.calibration.histogram import Histogram
from edgekit.calibration.statistics import Statistics
from edgekit.errors import BadInput, NotPossible, UsageError
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.observe import ObservedModel
from edgekit.stages import calibrate
from edgekit.types import OnnxModel

CONTRACT = Preprocess(height=16, width=16, resize="stretch")
SHAPE = [1, 3, 16, 16]
QUIET = calibrate.CalibrateOptions(time_inference=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images in an .npz."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return tmp_path / "images.npz"


def floats(name: str, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def weights(seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    return numpy_helper.from_array(values, "w")


def saved(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    external: bool = False,
) -> OnnxModel:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [floats("x", SHAPE)],
        outputs or [floats("y", None)],
        [weights()] if initializers is None else initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    if external:
        onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    else:
        onnx.save(model, str(path))
    return onnx_file.describe(path)


CONV = [
    helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["c"], ["y"]),
]


def collected(
    model: OnnxModel, images: Path, tmp_path: Path, **options: Any
) -> tuple[Statistics, Any]:
    made = calibrate.run(
        model,
        images,
        CONTRACT,
        tmp_path / "out.npz",
        calibrate.CalibrateOptions(time_inference=False, **options),
    )
    statistics, digest = store.read(made.path)
    assert digest == made.sha256
    assert made.graph_sha256 == model.sha256
    return statistics, made


def expected_histogram(model: OnnxModel, images: Path, tensor: str) -> Histogram:
    """The tensor's histogram from one plain session run per image."""
    histogram = Histogram()
    with ObservedModel(model.path, [tensor], SessionOptions()) as session:
        for pixels in np.load(images)["images"]:
            feed = {session.inputs[0].name: apply(pixels, CONTRACT)[0]}
            histogram.add(session.run(feed)[tensor])
    return histogram


def test_every_float_activation_is_observed_with_its_real_values(
    tmp_path: Path, images: Path
) -> None:
    model = saved(tmp_path / "m.onnx", CONV)
    statistics, made = collected(model, images, tmp_path)
    assert list(statistics.tensors) == list(made.ranges) == ["x", "c", "y"]
    assert made.images == 6
    with np.load(images) as archive:
        stack = [apply(pixels, CONTRACT)[0] for pixels in archive["images"]]
    w = numpy_helper.to_array(weights())
    conv = np.concatenate([_conv(x[0], w) for x in stack])
    assert statistics.histogram("c").count == conv.size
    assert statistics.histogram("c").minimum == pytest.approx(conv.min(), rel=1e-5)
    assert statistics.histogram("c").maximum == pytest.approx(conv.max(), rel=1e-5)
    assert statistics.histogram("y").minimum == 0.0
    assert statistics.histogram("c").mean == pytest.approx(conv.mean(), abs=1e-5)
    expected = expected_histogram(model, images, "c")
    assert np.array_equal(statistics.histogram("c").counts, expected.counts)


def _conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, w)


def test_channels_are_kept_where_asked_for(tmp_path: Path, images: Path) -> None:
    model = saved(tmp_path / "m.onnx", CONV)
    statistics, _ = collected(model, images, tmp_path, tensors=("y",), channels={"c": 1})
    assert list(statistics.tensors) == ["c", "y"]
    channels = statistics.tensors["c"].channels
    assert channels is not None and channels.channels == 4
    assert channels.minimum.min() == np.float32(statistics.histogram("c").minimum)
    assert channels.mean.mean() == pytest.approx(statistics.histogram("c").mean, abs=1e-5)
    with pytest.raises(UsageError, match="No channels can be observed of 'w'"):
        collected(model, images, tmp_path, tensors=("y",), channels={"w": 1})


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 4), (13, 7), (21, 10)])
def test_opsets(tmp_path: Path, images: Path, opset: int, ir_version: int) -> None:
    model = saved(tmp_path / "m.onnx", CONV, opset=opset, ir_version=ir_version)
    statistics, _ = collected(model, images, tmp_path)
    assert statistics.histogram("c").count == 6 * 4 * 256


def test_initializers_that_are_also_inputs(tmp_path: Path, images: Path) -> None:
    model = saved(
        tmp_path / "m.onnx",
        CONV,
        inputs=[floats("x", SHAPE), floats("w", [4, 3, 3, 3])],
        opset=9,
        ir_version=3,
    )
    statistics, _ = collected(model, images, tmp_path)
    assert list(statistics.tensors) == ["x", "c", "y"]


def test_external_data_is_read_and_belongs_to_the_key(tmp_path: Path, images: Path) -> None:
    plain = saved(tmp_path / "plain.onnx", CONV)
    model = saved(tmp_path / "m.onnx", CONV, external=True)
    statistics, _ = collected(model, images, tmp_path)
    reference, _ = collected(plain, images, tmp_path)
    assert statistics.histogram("c").same_as(reference.histogram("c"))
    before = calibrate.content_key(model, ["i"], CONTRACT, None)
    data = tmp_path / "w.bin"
    data.write_bytes(data.read_bytes()[::-1])
    after = calibrate.content_key(model, ["i"], CONTRACT, None)
    assert before.sha256 != after.sha256
    assert [k for k in before.fields if before.fields[k] != after.fields[k]] == ["weights"]
    data.unlink()
    with pytest.raises(BadInput):
        collected(model, images, tmp_path)


def test_dynamic_sizes_take_the_contracts(tmp_path: Path, images: Path) -> None:
    model = saved(tmp_path / "m.onnx", CONV, inputs=[floats("x", ["n", 3, "h", "w_"])])
    statistics, _ = collected(model, images, tmp_path)
    assert statistics.histogram("c").count == 6 * 4 * 256


def test_outputs_of_different_types(tmp_path: Path, images: Path) -> None:
    nodes = [
        *CONV,
        helper.make_node("ArgMax", ["y"], ["index"], axis=1),
        helper.make_node("Cast", ["y"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Greater", ["y", "c"], ["mask"]),
    ]
    outputs = [
        floats("y", None),
        helper.make_tensor_value_info("index", TensorProto.INT64, None),
        helper.make_tensor_value_info("half", TensorProto.FLOAT16, None),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, None),
    ]
    model = saved(tmp_path / "m.onnx", nodes, outputs=outputs)
    statistics, _ = collected(model, images, tmp_path)
    assert list(statistics.tensors) == ["x", "c", "y", "half"]
    assert statistics.histogram("half").count == statistics.histogram("y").count


def test_if_and_loop_are_observed_from_outside(tmp_path: Path, images: Path) -> None:
    def branch(name: str, op_type: str) -> onnx.GraphProto:
        inner = helper.make_node(op_type, ["c"], [f"{name}_out"])
        return helper.make_graph([inner], name, [], [floats(f"{name}_out", None)])

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_out"]),
            helper.make_node("Add", ["state", "state"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            floats("state", None),
        ],
        [
            helper.make_tensor_value_info("going_out", TensorProto.BOOL, []),
            floats("state_out", None),
        ],
    )
    nodes = [
        CONV[0],
        helper.make_node("ReduceMax", ["c"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["chosen"],
            then_branch=branch("then", "Relu"),
            else_branch=branch("else", "Neg"),
        ),
        helper.make_node("Loop", ["three", "", "chosen"], ["y"], body=body),
    ]
    constants = [
        weights(),
        numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
        numpy_helper.from_array(np.array(3, np.int64), "three"),
    ]
    model = saved(tmp_path / "m.onnx", nodes, initializers=constants)
    statistics, made = collected(model, images, tmp_path)
    assert list(statistics.tensors) == ["x", "c", "top", "chosen", "y"]
    assert made.ranges["y"].high == pytest.approx(8 * made.ranges["chosen"].high)


def test_shapes_and_constants_are_no_activations(tmp_path: Path, images: Path) -> None:
    nodes = [
        CONV[0],
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["shape_float"], to=TensorProto.FLOAT),
        helper.make_node(
            "Constant", [], ["one"], value=numpy_helper.from_array(np.ones(1, np.float32))
        ),
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("Mul", ["c", "two"], ["y"]),
    ]
    model = saved(tmp_path / "m.onnx", nodes)
    statistics, _ = collected(model, images, tmp_path)
    assert list(statistics.tensors) == ["x", "c", "y"]
    # asked for with others, as a placement rule may, they are left out
    statistics, _ = collected(model, images, tmp_path, tensors=("two", "shape_float", "w", "y"))
    assert list(statistics.tensors) == ["y"]
    with pytest.raises(UsageError) as error:
        collected(model, images, tmp_path, tensors=("yy",))
    assert "no tensor 'yy'" in error.value.message


def test_all_zero_and_constant_tensors(tmp_path: Path, images: Path) -> None:
    nodes = [
        CONV[0],
        helper.make_node("Mul", ["c", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "level"], ["y"]),
    ]
    constants = [
        weights(),
        numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        numpy_helper.from_array(np.full(1, -2.5, np.float32), "level"),
    ]
    model = saved(tmp_path / "m.onnx", nodes, initializers=constants)
    for method in ("minmax", "entropy", "percentile", "mse"):
        _, made = collected(model, images, tmp_path, method=method)
        assert (made.ranges["nothing"].low, made.ranges["nothing"].high) == (0.0, 0.0)
        assert (made.ranges["y"].low, made.ranges["y"].high) == (-2.5, 0.0)


def test_what_is_not_finite_names_tensor_and_image(tmp_path: Path, images: Path) -> None:
    nodes = [
        CONV[0],
        helper.make_node("Sqrt", ["c"], ["root"]),
        helper.make_node("Relu", ["root"], ["y"]),
    ]
    model = saved(tmp_path / "m.onnx", nodes)
    for workers in (1, 2):
        with pytest.raises(BadInput, match=r"'root' has \d+ NaN .*images\.npz\[\d\]"):
            collected(model, images, tmp_path, workers=workers)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([1, 3, 32, 32], "is fixed at"),
        ([4, 3, 16, 16], "fixed batch of 4"),
        ([1, 1, 16, 16], "is fixed at"),
        ([1, 16, 16, 3], "is fixed at"),
        ([1, 3, 16], "not that of a batch of images"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, images: Path, shape: list[int], words: str) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = saved(tmp_path / "m.onnx", nodes, inputs=[floats("x", shape)], initializers=[])
    with pytest.raises(BadInput, match=words) as error:
        collected(model, images, tmp_path)
    if len(shape) == 4:
        assert error.value.hint


def test_input_types_and_numbers(tmp_path: Path, images: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    half = helper.make_tensor_value_info("x", TensorProto.FLOAT16, SHAPE)
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)]
    model = saved(tmp_path / "m.onnx", nodes, inputs=[half], outputs=out, initializers=[])
    with pytest.raises(BadInput, match="is float16, the preprocessing gives float32"):
        collected(model, images, tmp_path)
    contract = CONTRACT.replace(dtype="float16")
    made = calibrate.run(model, images, contract, tmp_path / "half.npz", QUIET)
    assert list(made.ranges) == ["x", "y"]
    two = [floats("x", SHAPE), floats("z", SHAPE)]
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    model = saved(tmp_path / "two.onnx", nodes, inputs=two, initializers=[])
    with pytest.raises(NotPossible, match="2 inputs"):
        collected(model, images, tmp_path)


def test_shapes_that_depend_on_the_values(tmp_path: Path, images: Path) -> None:
    nodes = [
        CONV[0],
        helper.make_node("NonZero", ["y0"], ["where"]),
        helper.make_node("Relu", ["c"], ["y0"]),
        helper.make_node("Transpose", ["where"], ["rows"]),
        helper.make_node("GatherND", ["y0", "rows"], ["y"]),
    ]
    nodes[1], nodes[2] = nodes[2], nodes[1]
    model = saved(tmp_path / "m.onnx", nodes)
    statistics, _ = collected(model, images, tmp_path)
    assert 0 < statistics.histogram("y").count < statistics.histogram("c").count
    assert statistics.histogram("y").minimum > 0


def test_a_file_that_states_a_wrong_shape(tmp_path: Path, images: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_out"]),
            helper.make_node("Concat", ["state", "state"], ["state_out"], axis=1),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            floats("state", None),
        ],
        [
            helper.make_tensor_value_info("going_out", TensorProto.BOOL, []),
            floats("state_out", None),
        ],
    )
    nodes = [CONV[0], helper.make_node("Loop", ["two", "", "c"], ["y"], body=body)]
    constants = [weights(), numpy_helper.from_array(np.array(2, np.int64), "two")]
    wrong = [floats("y", [1, 4, 16, 16])]
    model = saved(tmp_path / "m.onnx", nodes, outputs=wrong, initializers=constants)
    statistics, _ = collected(model, images, tmp_path)
    assert statistics.histogram("y").count == 4 * statistics.histogram("c").count


def test_equal_images_count_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "twice.npz", images=np.concatenate((pixels, pixels)))
    np.savez(tmp_path / "once.npz", images=pixels)
    model = saved(tmp_path / "m.onnx", CONV)
    twice, made = collected(model, tmp_path / "twice.npz", tmp_path)
    once, _ = collected(model, tmp_path / "once.npz", tmp_path)
    assert made.images == 2
    assert twice.same_as(once)


def test_ranges_are_chosen_again_without_images(tmp_path: Path, images: Path) -> None:
    model = saved(tmp_path / "m.onnx", CONV)
    _, made = collected(model, images, tmp_path)
    images.unlink()
    again = calibrate.choose_ranges(made, "mse", symmetric=True)
    assert again.method == "mse"
    assert again.ranges["c"].low == -again.ranges["c"].high
    assert again.ranges["c"].high <= made.ranges["c"].amax
    opened = calibrate.open_calibration(made.path, "mse", symmetric=True)
    assert opened.ranges == again.ranges
    assert (opened.sha256, opened.image_sha256) == (made.sha256, made.image_sha256)
    store.write(Statistics(store.read(made.path)[0].origin), made.path)
    with pytest.raises(BadInput, match="is not the calibration it was"):
        calibrate.choose_ranges(made, "mse", symmetric=True)


def test_the_key_names_what_changed(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.onnx", CONV)
    base = calibrate.content_key(model, ["b", "a"], CONTRACT, ("c", "y"))
    assert base.sha256 == calibrate.content_key(model, ["a", "b"], CONTRACT, ("y", "c")).sha256
    other = saved(tmp_path / "o.onnx", CONV[:1], outputs=[floats("c", None)])
    changed = {
        "images": calibrate.content_key(model, ["a"], CONTRACT, ("c", "y")),
        "graph": calibrate.content_key(other, ["b", "a"], CONTRACT, ("c", "y")),
        "preprocess": calibrate.content_key(
            model, ["a", "b"], CONTRACT.replace(color="bgr"), ("c", "y")
        ),
        "tensors": calibrate.content_key(model, ["a", "b"], CONTRACT, None),
        "channels": calibrate.content_key(model, ["a", "b"], CONTRACT, ("c", "y"), {"c": 1}),
    }
    for field, key in changed.items():
        assert [k for k in base.fields if base.fields[k] != key.fields[k]] == [field]
        assert key.sha256 != base.sha256
