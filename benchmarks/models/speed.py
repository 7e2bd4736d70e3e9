"""Whole models: inference and training step, in milliseconds, multiples of the first model, and share of their floor.

    python -m benchmarks.models.speed                                    # Mask R-CNN, R3-CNN, SBR-CNN at 1333x800
    python -m benchmarks.models.speed --configs demo --image 128 128 --batch 4
    python -m benchmarks.models.speed --dtype bfloat16 --batch 4         # an accelerator
    python -m benchmarks.models.speed --configs mask_rcnn_r50_fpn yolact_r50_fpn@550x550 rds_table2:masks_800

How the models are fed: `benchmarks.programs`.  Floor: `benchmarks.measure.program_cost`.
"""

import argparse
from typing import Any

from benchmarks.measure import Row, beside_peak, floor_table, program_cost
from benchmarks.programs import inference, make_inputs, make_model, make_weights, options, setting, training
from jaxdet.runtime.large_pages import ask_for_large_pages


def rows(args: argparse.Namespace) -> list[Row]:
    """One or two for each config; all of them take turns."""
    kinds = {"inference": inference} if args.inference_only else {"inference": inference, "training step": training}
    programs: list[Any] = []
    for name in args.configs:
        config, _, size = name.partition("@")
        height, width = (int(side) for side in size.split("x")) if size else args.image
        inputs = make_inputs((height, width), args.batch)
        net = make_model(config, args.dtype)
        if args.unroll:
            net = net.clone(unroll=args.unroll == "yes")
        weights = make_weights(net)
        programs += [(f"{name}, {kind}", *make(net, weights, inputs)) for kind, make in kinds.items()]
    times, peak = beside_peak(*(call for _, _, call in programs), repeats=args.repeats, dtype=args.dtype)
    found = []
    for place, ((name, program, _), ms) in enumerate(zip(programs, times, strict=True)):
        rate, ratio = 1e3 * args.batch / ms, ms / times[place % len(kinds)]
        note = f"{rate:.3g} images/s, {ratio:.2f} times the first, {program.seconds:.0f} s to compile"
        found.append(Row(name, program_cost(program), peak, ms, note=note))
    return found


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument(
        "--configs",
        nargs="+",
        default=("mask_rcnn_r50_fpn", "r3_cnn", "sbr_cnn"),
        metavar="NAME[:ROW][@HxW]",
        help="of files in configs/, with the size of their images where it is not that of --image",
    )
    parser.add_argument(
        "--unroll", choices=("yes", "no"), help="write steps out, or roll them; else as the model likes"
    )
    parser.add_argument("--inference-only", action="store_true")
    args = parser.parse_args()
    print(floor_table(rows(args), f"; {setting(args)}"))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
