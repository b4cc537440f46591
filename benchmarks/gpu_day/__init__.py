"""Everything that is to be measured on a GPU, in one command that survives what fails; see `__main__`."""
