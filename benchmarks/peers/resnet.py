"""ResNet-50: features of an image, and features with the gradient of a loss over them, stem and first stage frozen.

python -m benchmarks.peers.resnet --image 800 1088
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Row, compiled, floor_table, program_cost
from benchmarks.peers.twins import apart, in_turn, torch_twin
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.runtime.large_pages import ask_for_large_pages


def fresh(net: ResNet) -> Any:
    """Variables in which no block is the identity, as fresh ones are: that would hide most of a difference."""
    variables = jax.tree.map(np.asarray, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    params = jax.tree_util.tree_map_with_path(lambda p, a: 0.3 + a if p[-1].key == "scale" else a, variables["params"])
    return {**variables, "params": params}


def rows(repeats: int, hw: tuple[int, int]) -> list[Row]:
    """Forward, and forward with backward."""
    net: Any = ResNet(depth=50)
    variables = fresh(net)
    image = np.random.default_rng(2).standard_normal((1, *hw, 3), np.float32)

    def loss(params: Any, x: Any) -> Any:
        return sum(jnp.square(f).mean() for f in net.apply({**variables, "params": params}, x).values())

    inference = compiled(lambda v, x: list(net.apply(v, x).values()), variables, image)
    training = compiled(jax.value_and_grad(loss), variables["params"], image)
    forward = partial(inference.call, variables, jnp.asarray(image))
    both = partial(training.call, variables["params"], jnp.asarray(image))
    theirs, notes = [], ["", ""]
    twin = torch_twin("resnet")
    if twin:
        theirs = twin.works(variables, image)
        grads = both()[1]
        chosen = [grads["layer2_0"]["conv1"]["kernel"], grads["layer4_2"]["conv3"]["kernel"]]
        notes = [
            apart(theirs[0](), [np.moveaxis(f, -1, 1) for f in forward()]),
            apart(theirs[1](), [np.transpose(g, (3, 2, 0, 1)) for g in chosen]),
        ]
    times = in_turn([forward, both], theirs, repeats)
    name = f"1 x {hw[0]} x {hw[1]}"
    return [
        Row(f"{name}, features", program_cost(inference), *times[0], notes[0]),
        Row(f"{name}, with gradient", program_cost(training), *times[1], notes[1]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs=2, default=(800, 1088), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(floor_table(rows(args.repeats, tuple(args.image))))


if __name__ == "__main__":
    ask_for_large_pages()
    main()
