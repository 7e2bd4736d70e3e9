"""What the program runs on: devices, processes of a job, the compiler, memory, and the files of the disk."""
