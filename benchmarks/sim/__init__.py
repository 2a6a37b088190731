"""The parts of `bench_sim.py`: contestants, each run as a process, what is asked of them, and the book of results."""
