"""Everything that is to be measured on a GPU, in one command that survives what fails; see `__main__`.

Importing it makes the whole package `zoo` importable in a checkout that is not installed, so it is also the plugin of
pytest that does so (`pytest -p benchmarks.gpu_day`).
"""

from benchmarks.gpu_day.checkout import make_importable

make_importable()
