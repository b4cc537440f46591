"""Trained models outside of the run that made them: loading, sharing and exporting."""
