"""``python -m jaxdet.data.scenes``: write scenes to a folder."""

from jaxdet.data.scenes.write import main

main()
