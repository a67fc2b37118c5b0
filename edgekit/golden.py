"""Golden samples: source image, input and outputs that any board can compare with its own.

    golden/NNN/image.png     the decoded source image, lossless: another program's preprocessing can
                             be tested apart from its JPEG decoder
    golden/NNN/input.npy     the input tensor, in the contract's dtype
    golden/NNN/output_K.npy  output K in the model's order, float32

Arrays are .npy of version 1.0, little-endian and in C order: a header of one line, then the values,
which a few lines of C++ read.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput
from edgekit.images import decode
from edgekit.manifest import GoldenLimits
from edgekit.preprocess import Preprocess, apply

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAME_LIMITS = GoldenLimits(max_rel_error=1e-6, min_cosine=0.999999)
"""With the CPU's instruction sets and the runtime version that made the golden outputs.

Runs in separate processes gave the same bits for every model tried; the limit leaves room for the
last bits of a float32 only.
"""

FLOAT_LIMITS = GoldenLimits(max_rel_error=1e-4, min_cosine=0.9999)
"""A float32 model elsewhere: other instruction sets sum in another order.

Measured between AVX-512 and AVX2: max_rel_error 2e-6 (YOLOv5n), 5e-6 (YOLO11n).
"""

HALF_LIMITS = GoldenLimits(max_rel_error=0.05, min_cosine=0.999)
"""A float16 or bfloat16 model elsewhere: its values carry 11 or 8 bits."""

INT8_LIMITS = GoldenLimits(max_rel_error=0.4, min_cosine=0.98)
"""An INT8 model elsewhere: a float step that rounds differently moves single values by a level.

Measured from x86 to ARM cores with ncnn, worst block: the same bits with ReLU; with SiLU, which is float
between the INT8 layers, max_rel_error 0.13 and cosine 0.9951 (YOLO11n), 0.13 and 0.9978 (YOLOv5n),
0.12 and 0.9993 (YOLO11n pruned by half). With ONNX Runtime between AVX-512 with VNNI and AVX2 without:
nothing with 7-bit weights (the same bits), but cosine 0.86 (YOLOv5n) and 0.70 (YOLO11n pruned by
half) with 8-bit weights, whose products saturate there: that is a model which must not pass.
"""

_MAX_IMAGE_BYTES = 256 << 20
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00.."
    rb"\{'descr': '([<|](?:f2|f4|f8|u1|i1|i4|i8|b1))', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,12}, ?)*(?:[0-9]{1,12})?)\), \} *\n",
    re.DOTALL,
)


def limits_for(precision: str) -> GoldenLimits:
    """How near another machine must come, by the model's precision ("fp32", "int8" …)."""
    if "int8" in precision:
        return INT8_LIMITS
    return HALF_LIMITS if "16" in precision else FLOAT_LIMITS


@dataclass(frozen=True, kw_only=True)
class GoldenSample:
    """One sample: image uint8 RGB [h, w, 3], its input tensor, the outputs by name in order."""

    image: NDArray[np.uint8]
    input: NDArray[Any]
    outputs: Mapping[str, NDArray[Any]]


def npy_bytes(array: NDArray[Any]) -> bytes:
    """`array` as .npy 1.0, little-endian, C order."""
    import numpy as np

    # not ascontiguousarray, which makes an axis of a scalar
    plain = np.asarray(array, order="C").astype(array.dtype.newbyteorder("<"), copy=False)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, plain, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_npy(path: Path) -> NDArray[Any]:
    """Read a .npy file as `npy_bytes` writes it.

    Raises BadInput for everything else: another order, objects, a size that does not fit the file.
    The header is matched, not evaluated.
    """
    import numpy as np

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    header = _NPY_HEADER.match(data)
    if header is None or header.end() != 10 + int.from_bytes(data[8:10], "little"):
        raise BadInput(f"{path} is not a .npy file of version 1.0, little-endian and in C order.")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in header[2].replace(b",", b" ").split())
    if math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise BadInput(f"{path} does not hold the {list(shape)} values that its header names.")
    array: NDArray[Any] = np.frombuffer(data, dtype=dtype, offset=header.end()).reshape(shape)
    return array


def write_samples(
    folder: Path, samples: Sequence[GoldenSample], contract: Preprocess
) -> list[dict[str, Any]]:
    """Write golden/NNN under `folder`; returns the manifest's list of samples.

    Raises ValueError when an input is not the preprocessing of its image: such a bundle could never
    verify.
    """
    import cv2
    import numpy as np

    entries = []
    for number, sample in enumerate(samples):
        expected, _ = apply(sample.image, contract)
        if expected.dtype != sample.input.dtype or not np.array_equal(expected, sample.input):
            raise ValueError(f"golden sample {number}: the input is not that of its image")
        place = f"golden/{number:03d}"
        (folder / place).mkdir(parents=True)
        bgr = np.ascontiguousarray(sample.image[:, :, ::-1])
        done, png = cv2.imencode(".png", bgr)
        if not done:
            raise ValueError(f"golden sample {number}: the image cannot be written as PNG")
        files = {f"{place}/image.png": png.tobytes(), f"{place}/input.npy": npy_bytes(sample.input)}
        outputs = []
        for index, (name, array) in enumerate(sample.outputs.items()):
            file = f"{place}/output_{index}.npy"
            files[file] = npy_bytes(np.asarray(array, dtype=np.float32))
            outputs.append({"name": name, "file": file})
        for name, data in files.items():
            (folder / name).write_bytes(data)
        entries.append(
            {"image": f"{place}/image.png", "input": f"{place}/input.npy", "outputs": outputs}
        )
    return entries


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a golden image to uint8 RGB [h, w, 3]. Raises BadInput when it is damaged or huge."""
    try:
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise BadInput(f"{path} is larger than {_MAX_IMAGE_BYTES >> 20} MiB.")
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    return decode(data, str(path))
