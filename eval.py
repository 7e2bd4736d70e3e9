"""Scores a checkpoint, or a results file: the command `jaxdet eval` from a checkout."""

from jaxdet.commands.eval import main
from jaxdet.runtime.hosts import run_main
from jaxdet.runtime.large_pages import ask_for_large_pages

if __name__ == "__main__":
    ask_for_large_pages()
    run_main(main)
