"""The rows of the papers' tables, by paper and table: ``tables/sbr_table6:row_3``."""
