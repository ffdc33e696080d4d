"""The parts of tools/ablate.py: what is compared, how fast each is, the trainings, and the table of their results."""
