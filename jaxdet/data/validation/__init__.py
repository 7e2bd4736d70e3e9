"""What a data set may hold, and what is wrong with one."""
