"""Names and layouts of other toolboxes' weights."""
