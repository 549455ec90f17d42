"""What cares for an installation: backup, rebuild, rollback, check, doctor, export, import."""
