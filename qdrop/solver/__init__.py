"""The jobs: load data, calibrate, reconstruct, evaluate, report."""
