"""Launches the command line from a checkout: `python cli.py fit --config gan.yaml`. Installed, it is `zoo`."""

from zoo.cli.main import main

if __name__ == "__main__":
    main()
