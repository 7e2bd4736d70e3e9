"""``python -m jaxdet.data.convert``: another tool's data set to COCO's format, and back."""

import sys

from jaxdet.data.convert.command import main

sys.exit(main())
