"""A bundle's INT8 model is taken apart beside the float graph that it was made of."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgekit.cli import run
from tests.integration.conftest import Exported


def test_a_bundle_beside_its_float_graph(
    resnet_bundle: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = next(resnet_bundle.cache.glob("**/prepare-*/model.onnx"))
    images = tmp_path / "images"
    images.mkdir()
    with np.load(resnet_bundle.images) as archive:
        for number, picture in enumerate(archive["images"][:8]):
            cv2.imwrite(str(images / f"{number}.png"), picture[:, :, ::-1])
    arguments = ["debug", str(resnet_bundle.bundle), "--float", str(prepared)]
    code = run([*arguments, "--images", str(images), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    # 19 convolutions and the classifier
    assert len(found["layers"]) == 20
    assert sum(layer["mac_share"] for layer in found["layers"]) == pytest.approx(1)
    assert 20 < found["sqnr_db"] < 50
    assert all(35 < layer["weight_db"] < 60 for layer in found["layers"])
    assert found["compared_images"] == len(found["images"]) == 8
