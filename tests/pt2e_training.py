"""PT2E quantization-aware training of a small network (torchao), for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.testing.pt2e._xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)

from tests import qat_training

Scale = tuple[bytes, bytes]
"""Bytes of the float32 scales, and of the zero points as int64."""


def prepared() -> nn.Module:
    """A ResNet-20 as a training program with fake quantizers; a few steps on noise gave them scales."""
    torch.manual_seed(0)
    model = qat_training.resnet.resnet20().train()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=(batch,))
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    made: nn.Module = prepare_qat_pt2e(program.module(), XNNPACKQuantizer().set_global(config))
    optimizer = torch.optim.SGD(made.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        made(torch.randn(8, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    move_exported_model_to_eval(made)
    return made


def save(model: nn.Module, path: Path) -> tuple[nn.Module, set[Scale]]:
    """Convert `model`, save it as a .pt2; the converted network, and every scale of the program."""
    converted = convert_pt2e(model)
    program = torch.export.export(converted, (torch.zeros(1, 3, 32, 32),))
    torch.export.save(program, path)
    constants = {**program.state_dict, **program.constants}
    names = {
        **program.graph_signature.inputs_to_buffers,
        **program.graph_signature.inputs_to_lifted_tensor_constants,
    }
    found: set[Scale] = set()
    for node in program.graph.nodes:
        if "dequantize_per_tensor" in str(node.target):
            scale, zero = torch.tensor(node.args[1]), torch.tensor(node.args[2])
        elif "dequantize_per_channel" in str(node.target):
            scale, zero = (constants[names[argument.name]] for argument in node.args[1:3])
        else:
            continue
        whole = zero.to(torch.int64).numpy()
        found.add((scale.float().numpy().tobytes(), whole.tobytes()))
    return converted, found
