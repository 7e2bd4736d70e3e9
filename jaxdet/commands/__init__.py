"""The command ``jaxdet``, and what its verbs do; ``train.py``, ``eval.py`` and ``predict.py`` start them too.

    jaxdet train --config mask_rcnn_r18_fpn_small --workdir runs/mine data.batch_size=2
    jaxdet eval runs/mine
    jaxdet predict runs/mine photo.jpg
    jaxdet export runs/mine exported
    jaxdet data check FOLDER
    jaxdet zoo

Nothing is imported before it is needed: worker processes import the program that runs, and have no use for jax.
"""

import importlib
import sys
from typing import NoReturn

from jaxdet.runtime.hosts import run_main
from jaxdet.runtime.large_pages import ask_for_large_pages

#: Words -> module with a ``main``, and what it does.
VERBS = {
    ("train",): ("jaxdet.commands.train", "train a model, or go on with a run"),
    ("eval",): ("jaxdet.commands.eval", "score a checkpoint, or a results file, by COCO's rules"),
    ("predict",): ("jaxdet.commands.predict", "detect what is in images"),
    ("export",): ("jaxdet.commands.export", "write a model as programs that run without jaxdet"),
    ("report",): ("jaxdet.report.__main__", "say where a model goes wrong, with a page to look at"),
    ("data", "check"): ("jaxdet.data.check", "look for what is wrong with a data set"),
    ("data", "convert"): (
        "jaxdet.data.convert.command",
        "read another tool's data set, or write for it",
    ),
    ("data", "show"): ("jaxdet.show", "draw a data set, its augmentation, the batch of a step"),
    ("zoo",): ("jaxdet.commands.zoo", "list the models, and the weights that others have published"),
}


def main() -> NoReturn:
    """Run a verb, and end the process with its exit code."""
    ask_for_large_pages()
    words = tuple(sys.argv[1:3])
    for verb, (module, _) in VERBS.items():
        if words[: len(verb)] == verb:
            # What argparse takes for the name of the program.
            sys.argv = [" ".join(("jaxdet", *verb)), *sys.argv[1 + len(verb) :]]
            run_main(importlib.import_module(module).main)
    if words and words[0] not in ("-h", "--help", "--version"):
        print(f"jaxdet: expected one of {', '.join(' '.join(verb) for verb in VERBS)}, got {' '.join(words)!r}",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    print(_version() if words[:1] == ("--version",) else _usage())
    sys.exit(0)


def _usage() -> str:
    width = max(len(" ".join(verb)) for verb in VERBS)
    lines = [f"  {' '.join(verb):<{width}}  {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(["usage: jaxdet VERB ...", "", *lines, "", "jaxdet VERB --help says more."])


def _version() -> str:
    import jaxdet

    return f"jaxdet {jaxdet.__version__}"
