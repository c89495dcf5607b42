"""The parts of scripts/demo_job.py."""
