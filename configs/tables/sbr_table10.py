"""SBR-CNN (Rossi et al. 2022), Table 10: GRoIE of the best parts of Tables 8 and 9.  Faster R-CNN."""

from jaxdet.configs.base import best_groie, faster_rcnn
from jaxdet.configs.tables.rows import FASTER_RCNN, Row, by_name

ROWS = {
    "baseline": Row("Faster R-CNN", faster_rcnn(), 37.4, params=FASTER_RCNN),
    "groie": Row("Faster R-CNN + GRoIE", faster_rcnn(best_groie), 39.3, params=(51_387_744, 51_162_400)),
}

get_config = by_name(ROWS)
