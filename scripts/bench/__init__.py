"""attndiff beside other networks: speed, memory and time to quality; run by scripts/bench.py."""
