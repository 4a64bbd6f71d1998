"""The command line: the program, and the commands that the kernel itself offers."""
