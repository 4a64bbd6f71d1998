"""One module for each runtime: `write` makes its files, `load` runs them. They run in the child process alone."""
