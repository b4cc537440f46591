"""The command line; `zoo.cli.main` is the program `zoo`."""
