"""How good a reward model is: metrics with intervals, baselines, calibration."""
