"""Feature extractors as safetensors files, and trained models, a folder each; `results.csv` tells how good they are."""
