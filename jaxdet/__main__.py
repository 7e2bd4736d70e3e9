"""``python -m jaxdet``: the command ``jaxdet`` (`jaxdet.commands`)."""

from jaxdet.commands import main

if __name__ == "__main__":
    main()
