"""The contestants of `bench_sim.py`."""
