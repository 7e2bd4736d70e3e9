"""The guard ``if __name__ == "__main__":`` of a script whose work starts worker processes.

Python starts a worker by importing the script that runs.  Without the guard the worker would begin the whole work anew,
in place of its own.
"""

import multiprocessing

ADVICE = 'put what the script does under `if __name__ == "__main__":`, or set data.workers=0, which starts no workers'


def refuse_in_workers() -> None:
    """End this process if it is a worker that has come here by importing the script.

    Call it where work begins that workers do not do.

    Raises:
        SystemExit: with a message for people; a traceback would be that of the import.
    """
    # Python's own mark of a process that is importing the script; by it `multiprocessing` refuses to start processes.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(f"jaxdet: a data worker imports this script and would begin its work again: {ADVICE}")
