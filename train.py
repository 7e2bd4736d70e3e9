"""Trains a model: the command `jaxdet train` from a checkout, python train.py --config configs/demo.py"""

from jaxdet.commands.train import main
from jaxdet.runtime.hosts import run_main
from jaxdet.runtime.large_pages import ask_for_large_pages

if __name__ == "__main__":
    ask_for_large_pages()
    run_main(main)
