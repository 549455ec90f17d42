"""How we know what we claim: intervals, sequences, calibration, certificates, estimates."""
