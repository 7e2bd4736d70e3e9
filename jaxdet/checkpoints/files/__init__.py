"""Weight files, which may come from strangers, read within bounds."""
