# Everything works on a fresh clone with nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check format bench bench-table soak

# constraints.txt pins every version; PyTorch comes as pip finds it. README, "Install", tells how to get its CPU build.
# torchvision lies apart, for the tests that ask for it: the others show that nothing needs it.
install: .venv/installed

.venv/installed: pyproject.toml constraints.txt dev-requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement dev-requirements.txt --editable .
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps open_clip_torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --target .venv/torchvision torchvision
	touch $@

# Processes that test; each may take some gigabytes, as it loads the largest networks.
TESTERS ?= 2

demo: install
	$(BIN)/clip demo

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest --quiet tests/unit

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest --numprocesses $(TESTERS) --dist worksteal

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Hours for all of it; `make bench BENCH="--rows encode --models ViT-B/32"` for a part. Results are appended.
bench: install
	$(BIN)/python bench/run.py $(BENCH)

# About an hour: a thousand kills, a hundred of eight processes that share a run, and a job of a million pictures. Figures go into LOG.md.
SOAK ?= /tmp/clip-turbo-soak
soak: install
	CLIP_SOAK_KILLS=1000 $(BIN)/pytest tests/fault/batch/test_kill.py
	CLIP_SOAK_REQUESTS=100000 $(BIN)/pytest tests/fault/serve/test_soak.py
	CLIP_SOAK_PART_KILLS=100 $(BIN)/pytest tests/fault/batch/test_parts_killed.py
	CLIP_SOAK_RAY=1 $(BIN)/pytest tests/fault/cluster/test_ray.py
	CLIP_SOAK_POWER=50 $(BIN)/pytest tests/fault/batch/test_power_cut.py
	CLIP_SOAK_DAMAGES=500 $(BIN)/pytest tests/fault/retrieval/test_damaged_ivf.py
	$(BIN)/python bench/ivf.py --synthetic --rows 20000000 --work $(SOAK)
	CLIP_SOAK_SIZES=2000 $(BIN)/pytest tests/unit/engine/test_resize.py
	$(BIN)/python bench/scale.py --work $(SOAK)
	$(BIN)/python bench/scale.py --work $(SOAK) --model ViT-B/32 --untrained

bench-table: install
	$(BIN)/python bench/run.py --table bench/results.jsonl
