"""The report of a run as one HTML page, made from the files in the run's folder; several runs side by side."""
