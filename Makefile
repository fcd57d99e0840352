# Each target makes what it needs; nothing has to be installed by hand but python3 (3.11 or newer).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed

FIGURES := daemon conservation join all_killed mixing_cost paces learning byzantine store_disk tokenise
FLAGS   :=
GGUF    ?=
OTHER   := python3.13
SCENARIO ?=

.PHONY: help demo test core core-and-sim check format sim net slow gpu rig rig-netns rig-ray rig-hdfs other-python bench-peers fuzz figures figures-long clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    three nodes train a small Shakespeare on this machine, one is killed on the way"
	@echo "make test    all tests that need nothing special"
	@echo "make core    the tests of the pure rooms alone: run them on every save"
	@echo "make check   format, lint, types, spelling"
	@echo "make figures | figures-long    measure what docs/results.md promises; FLAGS=--record writes it there; GGUF=FILE: a published model too"
	@echo "make sim | net | slow | gpu    one kind of test"
	@echo "make rig          five nodes in containers, killed, frozen, cut off: from the image to a report; SCENARIO=FILE"
	@echo "make rig-netns    the same on machines made of namespaces, then tests there: lines, chaos, systemd; needs root and ip"
	@echo "make rig-ray      nodes on a Ray cluster of this machine, in an environment of its own: .venv-ray"
	@echo "make rig-hdfs    one corpus by file, HTTP, S3 and a real HDFS: its servers in an environment of their own, .venv-hdfs; needs Java"
	@echo "make other-python OTHER=python3.13    one seed, one run: on another interpreter too"
	@echo "make bench-peers    others to compare with in peerlm bench, in an environment of their own: .venv-peers"
	@echo "make fuzz    damaged inputs for every decoder, hostile peers for every machine, for minutes"

$(STAMP): pyproject.toml constraints.txt peerlm/mix/kernel.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/peerlm demo

# What computes shares the processors; what has sockets and deadlines of real time has the machine to itself.
test: core-and-sim
	$(BIN)/python -m pytest -m "net and not slow and not gpu and not rig"

core-and-sim: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not net and not slow and not gpu and not rig"

core: $(STAMP)
	$(BIN)/python -m pytest -m "not sim and not net and not slow and not gpu and not rig"

check: $(STAMP)
	$(BIN)/ruff format --check peerlm tests tools bench
	$(BIN)/ruff check peerlm tests tools bench
	$(BIN)/mypy
	$(BIN)/codespell peerlm tests bench docs README.md ARCHITECTURE.md GLOSSARY.md CHANGELOG.md

format: $(STAMP)
	$(BIN)/ruff format peerlm tests tools bench
	$(BIN)/ruff check --fix peerlm tests tools bench

sim net gpu: $(STAMP)
	$(BIN)/python -m pytest -m $@

slow: $(STAMP)
	$(BIN)/python -m pytest -m $@ --hypothesis-profile search

rig: $(STAMP)
	SCENARIO='$(SCENARIO)' $(BIN)/python deploy/rig.py

rig-netns: $(STAMP)
	$(BIN)/peerlm chaos run $(or $(SCENARIO),deploy/scenarios/containers.toml)
	RIG=wanted $(BIN)/python -m pytest -m rig

rig-ray:
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --upgrade pip
	.venv-ray/bin/python -m pip install --quiet -c constraints.txt -c tests/rig/ray-constraints.txt -e '.[dev,ray]'
	.venv-ray/bin/python -m pytest tests/rig/test_ray.py

# What it needs of Debian is said in bench/hdfs_here.py. Where it is not to be had this fails.
rig-hdfs: $(STAMP)
	$(PYTHON) -m venv .venv-hdfs
	.venv-hdfs/bin/python -m pip install --quiet 'setuptools<70' wheel pypandoc==1.5
	.venv-hdfs/bin/python -m pip install --quiet --no-deps --no-build-isolation pyspark==2.4.8
	HDFS=wanted $(BIN)/python -m pytest tests/rig/test_hdfs.py
	$(BIN)/python -m bench.same_corpus $(FLAGS)

other-python: $(STAMP)
	$(OTHER) -m venv .venv-other
	.venv-other/bin/python -m pip install --quiet -c constraints.txt blake3 click cryptography fsspec msgpack \
	    numpy platformdirs psutil rich safetensors tokenizers tomlkit
	OTHER_PYTHON=$(CURDIR)/.venv-other/bin/python $(BIN)/python -m pytest tests/sim/test_determinism.py

bench-peers:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade pip
	.venv-peers/bin/python -m pip install --quiet -c bench/peers-constraints.txt hivemind

fuzz: $(STAMP)
	$(BIN)/python -m bench.fuzz --inputs 300000 --seed $$(date +%s)
	FUZZ=20 $(BIN)/python -m pytest tests/fuzz --timeout 900 --hypothesis-profile search
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not net and not slow and not gpu and not rig" --hypothesis-profile search

figures: $(STAMP)
	@missed=; for figure in $(FIGURES); do \
	    echo "$$figure:"; $(BIN)/python -m bench.$$figure $(FLAGS) || missed="$$missed $$figure"; echo; \
	done; test -z "$$missed" || { echo "missed:$$missed"; exit 1; }

figures-long: $(STAMP) bench-peers
	$(BIN)/python -m bench.exchange $(FLAGS)
	$(BIN)/python -m bench.lines $(FLAGS)    # needs root: it makes networks
	$(BIN)/python -m bench.speed $(FLAGS)
	$(BIN)/python -m bench.membership $(FLAGS)
	$(BIN)/python -m bench.placement $(FLAGS)
	$(BIN)/python -m bench.store_sim $(FLAGS)
	$(BIN)/python -m bench.faults --seeds 10000 $(FLAGS)
	$(BIN)/python -m bench.faults_stages $(FLAGS)
	$(BIN)/python -m bench.fuzz --inputs 1000000 $(FLAGS)
	$(BIN)/python -m bench.chaos $(FLAGS)
	$(BIN)/python -m bench.hosts $(FLAGS)    # needs root: it makes networks
	$(BIN)/python -m bench.stages $(FLAGS)
	$(BIN)/python -m bench.takeover $(FLAGS)
	$(BIN)/python -m bench.stage_speed $(FLAGS)
	$(BIN)/python -m bench.before $(FLAGS)
	$(BIN)/python -m bench.stream $(FLAGS)
	$(BIN)/python -m bench.texts --preset gpt-124m $(FLAGS)
	$(BIN)/python -m bench.texts_killed $(FLAGS)
	$(BIN)/python -m bench.texts_same $(FLAGS)
	$(BIN)/python -m bench.texts_load $(FLAGS)
	test -z '$(GGUF)' || $(BIN)/python -m bench.texts_gguf --gguf '$(GGUF)' $(FLAGS)
	$(BIN)/python -m bench.store_swarm $(FLAGS)
	$(BIN)/python -m bench.store_kills $(FLAGS)
	$(BIN)/python -m bench.long_line $(FLAGS)
	$(BIN)/python -m bench.truth $(FLAGS)    # needs root: it makes networks

clean:
	rm -rf $(VENV) .venv-other .venv-peers .venv-ray .venv-hdfs deploy/wheels build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
