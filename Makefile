# `make gan` and `make test` do all the set-up on a fresh machine; they print what they run, so it can be typed as well.
PYTHON ?= python3
FLOOR_PYTHON ?= python3.10
NEWEST_PYTHON ?= python3.13

.PHONY: gan test test-slow test-floors test-newest lint docs lock

gan: .venv/installed
	.venv/bin/python cli.py fit --config gan.yaml

test: .venv/installed
	.venv/bin/python -m pytest -m "not slow" -n 2

test-slow: .venv/installed
	.venv/bin/python -m pytest -m slow -n 2

# The quick tests with the oldest versions that pyproject.toml allows, and with the newest.
test-floors: .venv-floors/installed
	.venv-floors/bin/python -m pytest -m "not slow" -n 2

test-newest: .venv-newest/installed
	.venv-newest/bin/python -m pytest -m "not slow" -n 2

# mypy, import-linter and the site look at the installed form: in the checkout datamodules/ and callbacks/ stand outside
# zoo/.
lint: .venv/installed build/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy build/installed/zoo
	cd build/installed && ../../.venv/bin/lint-imports --no-cache ../../pyproject.toml
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

docs: .venv/installed build/installed
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

.PHONY: build/installed
build/installed: .venv/installed
	rm -rf build
	.venv/bin/python -m pip install --quiet --no-deps --target build/installed .

.venv-floors/installed: pyproject.toml
	$(FLOOR_PYTHON) -m venv .venv-floors
	.venv-floors/bin/python -m pip install --quiet uv # which resolves to the floors; pip does not
	.venv-floors/bin/uv pip install --quiet --python .venv-floors/bin/python --upgrade --resolution lowest-direct --editable ".[dev]"
	touch .venv-floors/installed

.venv-newest/installed: pyproject.toml
	$(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[dev]"
	touch .venv-newest/installed

# Where requirements.lock is for, every downloaded file must have a hash that it names, and nothing else is downloaded, not
# even to build the package. Elsewhere, or with LOCKED=no, the versions of constraints.txt are installed.
LOCKED ?= $(shell $(PYTHON) -c "import platform as p; print('yes' if p.python_implementation() == 'CPython' and \
	p.python_version().startswith('3.11.') and (p.system(), p.machine()) == ('Linux', 'x86_64') else 'no')")

# Python compiles a module when it is first imported; to compile all 19,000 of them ahead would be half of pip's CPU time.
.venv/installed: export PIP_COMPILE = 0
.venv/installed: pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv .venv
ifeq ($(LOCKED),yes)
	.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
endif
	touch .venv/installed

# After a change of pyproject.toml or constraints.txt: all versions, and the hashes of their files as the index has them.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile --quiet pyproject.toml --extra dev --constraint constraints.txt --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-package lightning-zoo --no-annotate \
		--custom-compile-command "make lock" --output-file requirements.lock
