# Paceline. `make up` and `make test` are the two commands to know; both need only Python >= 3.11 and a package index.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RIVALS := .venv-bench
BULLMQ := tests/bench/baselines/bullmq

.PHONY: help up demo faults test test-servers bench compare lint format lock manifests clean

help:            ## what there is to do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

up: $(VENV)/.local           ## the whole pipeline on this machine; ^C stops it; PORT=8001 for another port
	@$(BIN)/paceline up $(if $(PORT),--port $(PORT))

demo: $(VENV)/.local         ## the pipeline, a sandbox upstream and a mixed queue, with live progress
	@$(BIN)/paceline demo

faults: $(VENV)/.local       ## the whole fault suite: 10,000 messages under fire, about 12 minutes
	@$(BIN)/paceline faults --messages 10000 --accounts 50 --minutes 10 --seed 1 \
	    --kills 100 --hangs 20 --redis-losses 10 --postgres-restarts 5

# Six at once on two cores, handed out one by one: tests that kill processes wait most of the time.
test: $(VENV)/.dev           ## the whole test suite
	@$(BIN)/python -m pytest -n 6 --maxschedchunk 1

test-servers: $(VENV)/.dev   ## the tests of real servers, on Debian's PostgreSQL 15, Redis 7 and RabbitMQ; about 10 minutes
	@$(BIN)/python -m tests.servers

bench: $(VENV)/.local $(RIVALS)/.done  ## every figure in relation to its baseline, about 10 minutes; docs/benchmarks.md
	@$(BIN)/python -m tests.bench --markdown docs/benchmarks.md

compare: $(VENV)/.local $(RIVALS)/.done  ## beside what a user would pick instead: limits held, losses, CPU; about 20 minutes
	@$(BIN)/python -m tests.bench.compare --markdown docs/benchmarks.md

lint: $(VENV)/.dev           ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev         ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock:            ## resolve the requirements again (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header pyproject.toml -o requirements/base.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header pyproject.toml --extra local --extra otel --group dev -c requirements/base.txt -o requirements/dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header pyproject.toml --extra local --group build -c requirements/dev.txt -o requirements/local.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --group bench -c requirements/base.txt -o requirements/bench.txt

manifests: $(VENV)/.local    ## Kubernetes' alerts and dashboard again, from deploy/prometheus and deploy/grafana
	@$(BIN)/python -m deploy.monitoring

clean:           ## forget the virtual environment and the local data
	@case "$$(readlink .paceline/postgres)" in /var/lib/paceline/data-*/postgres) rm -rf "$$(dirname "$$(readlink .paceline/postgres)")";; esac
	rm -rf $(VENV) $(RIVALS) $(BULLMQ)/node_modules .paceline

# One environment, grown in two steps: what runs, then what tests. The stamps name what has been installed.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Paceline needs Python 3.11 or newer; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.local: $(VENV)/bin/python requirements/local.txt pyproject.toml
	@echo "installing what it runs on into $(VENV), once" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/local.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.local requirements/dev.txt
	@echo "installing what it is tested with" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

# What Paceline is measured against, away from what it runs on. BullMQ only where there is Node.
$(RIVALS)/.done: requirements/bench.txt $(BULLMQ)/package-lock.json
	@echo "installing what it is measured against into $(RIVALS), once" >&2
	@$(PYTHON) -m venv $(RIVALS)
	@$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@if command -v npm >/dev/null; then npm install --prefix $(BULLMQ) --no-save --silent --ignore-scripts --no-audit --no-fund; \
	    else echo "no Node here: BullMQ is left out" >&2; fi
	@touch $@
