"""Mask R-CNN R50-FPN end to end beside torchvision's, on one device in one run: training step and inference.

    python -m benchmarks.peers.torchvision_maskrcnn --image 800 1333 --batch 4 --dtype bfloat16       # a GPU

Both get the same images of noise with the same twenty objects each.  Each side computes in its own mixed precision:
``model.dtype`` here, ``torch.autocast`` there.  torchvision has no fixed shapes, so its images are handed over at their
size, and it resizes nothing.  Transfers from the host are in neither time.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import Row, floor_table, program_cost
from benchmarks.peers.twins import in_turn
from benchmarks.programs import Inputs, inference, make_inputs, make_weights, options, setting, training
from jaxdet.config import load_config


def torchvision_works(
    torch: Any, torchvision: Any, inputs: Inputs, dtype: str, *, channels_last: bool = False
) -> list[Callable[[], Any]]:
    """Inference and training step of torchvision's model, on the GPU if torch sees one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, width = (int(side) for side in inputs.batch.true_hw[0])
    sizes = {"min_size": min(height, width), "max_size": max(height, width)}
    detection = torchvision.models.detection
    # What maskrcnn_resnet50_fpn makes for pretrained weights: stored statistics, stem and first stage not trained.
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d, trainable_layers=3
    )
    net = detection.MaskRCNN(backbone, num_classes=81, **sizes).to(device)
    if channels_last:  # what a convolution computes has the layout of its kernel
        net = net.to(memory_format=torch.channels_last)
    images, targets = to_torch(torch, inputs, (height, width), device)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
    mixed = {"device_type": device.type, "dtype": torch.bfloat16, "enabled": dtype == "bfloat16"}

    def finished(value: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return value

    def detect() -> Any:
        net.eval()
        with torch.no_grad(), torch.autocast(**mixed):
            return finished(len(net(images)))

    def step() -> Any:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(**mixed):
            loss = sum(net(images, targets).values())
        loss.backward()
        optimizer.step()
        return finished(0)

    return [detect, step]


def to_torch(torch: Any, inputs: Inputs, hw: tuple[int, int], device: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """Images ``[3, H, W]`` in 0..1, and boxes, labels (from 1) and whole masks; objects are full rectangles."""
    height, width = hw
    pixels = np.asarray(inputs.batch.image)[:, :height, :width].transpose(0, 3, 1, 2)
    images = [torch.tensor(image, dtype=torch.float32, device=device) / 255 for image in pixels]
    found = []
    assert inputs.batch.targets is not None  # make_inputs gives every batch some
    for boxes in np.asarray(inputs.batch.targets.boxes):
        masks = np.zeros((len(boxes), height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 1
        labels = torch.ones(len(boxes), dtype=torch.int64, device=device)
        target = {"boxes": torch.tensor(boxes, device=device), "labels": labels}
        found.append({**target, "masks": torch.tensor(masks, device=device)})
    return images, found


def rows(torch: Any, torchvision: Any, args: argparse.Namespace) -> list[Row]:
    """Inference and training step, sides in turn."""
    net = load_config(f"configs/{args.config}.py").model.clone(dtype=args.dtype)
    inputs = make_inputs(tuple(args.image), args.batch)
    weights = make_weights(net)
    ours = [make(net, weights, inputs) for make in (inference, training)]
    theirs = torchvision_works(torch, torchvision, inputs, args.dtype)
    times = in_turn([call for _, call in ours], theirs, args.repeats, args.dtype)
    found = []
    for what, (program, _), (peak, ms, their_ms) in zip(("inference", "training step"), ours, times, strict=True):
        note = " and ".join(f"{1e3 * args.batch / side:.3g}" for side in (ms, their_ms) if side) + " images/s"
        found.append(Row(what, program_cost(program), peak, ms, their_ms, note))
    return found


def main() -> None:
    parser = options(__doc__, batch=4, dtype="bfloat16", repeats=10)
    parser.add_argument("--config", default="mask_rcnn_r50_fpn")
    args = parser.parse_args()
    try:
        torch, torchvision = importlib.import_module("torch"), importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        sys.exit(f"expected torch and a torchvision built for it: {error}")
    found = rows(torch, torchvision, args)
    print(floor_table(found, f"; {setting(args)}"))


if __name__ == "__main__":
    main()
