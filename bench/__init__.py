"""Measurements, side by side in one run: a time means something only beside another of the same run."""
