# Two commands do all: `make demo` and `make test`. They need Python 3.11 or newer and nothing else.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow check format test-net bench-core bench-bytes bench-round bench-net bench-memory bench-sim bench-extreme bench-leases bench-privacy bench-secure bench-paper bench-accuracy bench-tables wheel clean

demo: $(INSTALLED) ## train on real digits and show where the report is
	rm -rf runs/demo
	$(BIN)/ist-fed simulate scenarios/digits.toml --run runs/demo
	$(BIN)/ist-fed report runs/demo

test: $(INSTALLED) ## the test suite; under ten minutes on two cores
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(INSTALLED) ## also what starts Flower's own processes
	$(BIN)/python -m pytest -m "slow and not net"

test-net: $(INSTALLED) ## server and clients on hosts of their own (network namespaces); needs root, else says so
	$(BIN)/python -m pytest -m net -rs tests/net

check: $(INSTALLED) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-core: $(INSTALLED) ## speed of cutting, merging, and of a round's overhead
	$(BIN)/python benchmarks/bench_core.py
	$(BIN)/python benchmarks/bench_overhead.py
	$(BIN)/python benchmarks/table.py

bench-bytes: $(INSTALLED) ## bytes to 97 % and final accuracy, IST against FedAvg; about an hour
	$(BIN)/python benchmarks/bench_bytes.py
	$(BIN)/python benchmarks/table.py

bench-round: $(INSTALLED) ## seconds and memory of a round over gRPC and TLS, resident against stock
	$(BIN)/python benchmarks/bench_round.py
	$(BIN)/python benchmarks/table.py

bench-net: $(INSTALLED) ## time to 97 % over slow links, against FedAvg and torch DDP; needs root
	$(BIN)/python benchmarks/bench_net.py
	$(BIN)/python benchmarks/check_virtual.py
	$(BIN)/python benchmarks/table.py

bench-memory: $(INSTALLED) ## a network too big for any client, under memory limits; needs root
	$(BIN)/python benchmarks/bench_memory.py
	$(BIN)/python benchmarks/table.py

bench-sim: $(INSTALLED) ## simulated rounds: engines, hand-written loops and peers; hours, goes on where it stopped
	$(BIN)/python benchmarks/bench_sim.py
	$(BIN)/python benchmarks/table.py

bench-extreme: $(INSTALLED) ## memory at 670 091 labels; a few minutes, 8 GB
	$(BIN)/python benchmarks/bench_extreme.py
	$(BIN)/python benchmarks/table.py

bench-leases: $(INSTALLED) ## virtual time to 97 %, leases against synchronous rounds; minutes on an idle core
	$(BIN)/python benchmarks/bench_leases.py
	$(BIN)/python benchmarks/table.py

bench-secure: $(INSTALLED) ## secure rounds: seconds and bytes, beside Flower's SecAgg+
	$(BIN)/python benchmarks/bench_secure.py
	$(BIN)/python benchmarks/table.py

bench-privacy: $(INSTALLED) ## accuracy against epsilon, FedAvg and IST; about half an hour
	$(BIN)/python benchmarks/bench_privacy.py
	$(BIN)/python benchmarks/table.py

bench-paper: $(INSTALLED) ## time to a target on the IST paper's clusters, in virtual time; an hour and a half
	$(BIN)/python benchmarks/bench_paper.py
	$(BIN)/python benchmarks/table.py

bench-accuracy: $(INSTALLED) ## final accuracy beside federated averaging, uneven data, unequal clients, text; about an hour
	$(BIN)/python benchmarks/bench_accuracy.py
	$(BIN)/python benchmarks/table.py

bench-tables: $(INSTALLED) ## docs/benchmarks.md from benchmarks/results/
	$(BIN)/python benchmarks/table.py

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist runs .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The versions we test with; pip, because a plain `torch` from another installer may pull in gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
