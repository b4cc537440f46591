# `make gan` and `make test` do all the set-up on a fresh machine; they print what they run, so it can be typed as well.
PYTHON ?= python3

.PHONY: gan test test-slow lint

gan: .venv/installed
	.venv/bin/python cli.py fit --config gan.yaml

test: .venv/installed
	.venv/bin/python -m pytest -m "not slow"

test-slow: .venv/installed
	.venv/bin/python -m pytest -m slow

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pip install --quiet --no-deps --upgrade --target build/types .
	.venv/bin/mypy build/types/zoo # the installed form: in the checkout datamodules/ and callbacks/ stand outside zoo/

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch .venv/installed
