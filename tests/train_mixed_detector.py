"""How `weights/mixed_detector.pt` came about: `python -m tests.train_mixed_detector --out FILE`.

The detector of `mixed_detector.py`, trained from scratch on scenes of examples/cells. Everything random
is seeded; on one machine with one thread count a run repeats itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tests import mixed_detector

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "tests" / "weights" / "mixed_detector.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="checkpoint file")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--scenes", type=int, default=3000, help="training scenes")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "examples" / "cells"))
    import train
    from scenes import TRAIN_SEED
    from score import render

    train.prepare(0, options.threads)
    settings = train.Settings(options.steps, rate=4e-3)
    model = mixed_detector.untrained()
    data = render(TRAIN_SEED, options.scenes)
    kept = train.fit(model, data, settings, strides=mixed_detector.STRIDES)
    state = {
        name: value.detach().to(torch.float32, memory_format=torch.contiguous_format)
        for name, value in kept.state_dict().items()
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state}, options.out)


if __name__ == "__main__":
    main()
